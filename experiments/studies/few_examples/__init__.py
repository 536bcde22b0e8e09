"""How many examples do methods need? Accuracy over the number of examples."""

from experiments.studies.few_examples.report import CAPTION, claims, draw, text
from experiments.studies.few_examples.study import TINY, Protocol, run

__all__ = ['CAPTION', 'TINY', 'Protocol', 'claims', 'draw', 'run', 'text']
