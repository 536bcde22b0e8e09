"""Published results: their table, what each needs to run, and the runs that repeat them."""

from peftjax.reproduce.missing import missing
from peftjax.reproduce.rows import Paper, Protocol, Published, Row, find, settings_of, table
from peftjax.reproduce.run import Result, listing, run, score

__all__ = [
    'Paper',
    'Protocol',
    'Published',
    'Result',
    'Row',
    'find',
    'listing',
    'missing',
    'run',
    'score',
    'settings_of',
    'table',
]
