"""Many adapters on one base: banks, batches with an adapter for each row, and a queue."""

from peftjax.core.trained import Trained
from peftjax.serving.bank import Bank
from peftjax.serving.filling import bank, put
from peftjax.serving.generate import generator
from peftjax.serving.predict import adapt
from peftjax.serving.queue import Answer, server
from peftjax.serving.reading import Request

__all__ = ['Answer', 'Bank', 'Request', 'Trained', 'adapt', 'bank', 'generator', 'put', 'server']
