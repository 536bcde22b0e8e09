"""What do methods forget for what they learn? The drift of embeddings over the loss."""

from experiments.studies.forgetting.report import CAPTION, claims, draw, text
from experiments.studies.forgetting.study import TINY, Protocol, run

__all__ = ['CAPTION', 'TINY', 'Protocol', 'claims', 'draw', 'run', 'text']
