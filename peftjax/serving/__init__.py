"""Many adapters on one base: banks, batches with an adapter for each row, and a queue."""

from peftjax.core.trained import Trained
from peftjax.serving.bank import Bank
from peftjax.serving.filling import bank, put
from peftjax.serving.generate import generator
from peftjax.serving.predict import adapt
from peftjax.serving.programs import Request
from peftjax.serving.queue import Answer, server

__all__ = ['Answer', 'Bank', 'Request', 'Trained', 'adapt', 'bank', 'generator', 'put', 'server']
