"""Many adapters on one base: banks of adapters, batches whose rows have one each, and a queue."""

from peftjax.core.trained import Trained
from peftjax.serving.bank import Bank, bank, put
from peftjax.serving.generate import generator
from peftjax.serving.predict import adapt
from peftjax.serving.programs import Request
from peftjax.serving.queue import Answer, server

__all__ = ['Answer', 'Bank', 'Request', 'Trained', 'adapt', 'bank', 'generator', 'put', 'server']
