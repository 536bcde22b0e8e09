"""Questions of made-up words, whose first word decides their kind, and an encoder for them."""

import itertools
from pathlib import Path

from tests.tiny_runs import WORDS, checkpoint

KINDS = {'ART': WORDS[8:10], 'MAN': WORDS[10:12]}


def encoder(folder: Path) -> str:
    """The folder of a tiny random BERT."""
    return str(checkpoint(folder / 'bert', 'tiny_bert'))


def questions(folder: Path) -> str:
    """A file as that of the TREC questions, 256 of them."""
    rest = itertools.product(WORDS[:8], WORDS[:8])
    lines = [
        f'{kind}:any {first} {" ".join(words)}\n'
        for words in rest
        for kind, firsts in KINDS.items()
        for first in firsts
    ]
    path = folder / 'questions.txt'
    path.write_text(''.join(lines), encoding='utf-8')
    return str(path)
