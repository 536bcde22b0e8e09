"""Labelled text read from files: film reviews and grade-school mathematics, with their splits."""

import bz2
import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_LABELS = {'rotten': 0, 'fresh': 1}
_SPLITS = (('test', 0.2), ('validation', 0.3), ('train', 1.0))


class Review(NamedTuple):
    """One sentence of a review: its text, 1 if the review recommends the film, and the film."""

    text: str
    label: int
    film: str


class Problem(NamedTuple):
    """A word problem and its worked answer."""

    question: str
    answer: str


def read_reviews(path: Path) -> list[Review]:
    """Reads Rotten Tomatoes sentences from a CSV compressed with bz2.

    Plot summaries and repeated sentences are left out. Two names under which the same sentence
    occurs are two spellings of one film, and are made one.

    Raises:
        ValueError: a column is missing.
    """
    with bz2.open(path, 'rt', encoding='utf-8', newline='') as file:
        reader = csv.DictReader(file)
        _require(('category', 'text', 'movie_name'), reader.fieldnames or (), path)
        rows = [row for row in reader if row['category'] in _LABELS]
    reviews: dict[str, Review] = {}
    alias: dict[str, str] = {}
    for row in rows:
        review = Review(row['text'], _LABELS[row['category']], row['movie_name'])
        known = _first_name(reviews.setdefault(review.text, review).film, alias)
        name = _first_name(review.film, alias)
        if name != known:
            alias[name] = known
    return [r._replace(film=_first_name(r.film, alias)) for r in reviews.values()]


def split_by_film(reviews: Iterable[Review]) -> dict[str, list[Review]]:
    """Splits so that no film is on two sides: 70 % of films train, 10 % validate, 20 % test.

    A film's side depends on a hash of its name alone, so it is the same on every machine and does
    not move when reviews are added.
    """
    splits: dict[str, list[Review]] = {name: [] for name, _ in _SPLITS}
    for review in reviews:
        digest = hashlib.sha256(review.film.encode()).digest()
        place = int.from_bytes(digest[:8], 'big') / 2**64
        splits[next(name for name, end in _SPLITS if place < end)].append(review)
    return splits


def draw(rows: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Some of the rows in a random order, which the seed decides.

    Raises:
        ValueError: there are fewer rows than `count`.
    """
    if len(rows) < count:
        raise ValueError(f'{count} examples are asked for, but only {len(rows)} are left')
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:count]]


def read_problems(path: Path) -> list[Problem]:
    """Reads GSM8K's JSON lines.

    Raises:
        ValueError: a line is not JSON, or a field is missing.
    """
    problems = []
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}, line {number}: not JSON: {error}') from None
        _require(('question', 'answer'), row, path)
        problems.append(Problem(row['question'], row['answer']))
    return problems


def split_problems(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Splits the official test part for our use: 900 to train, 100 to validate, the rest to test.

    The official training part is not used, so results are comparable among runs of this project
    only. Problems keep their order in the file.
    """
    return {
        'train': list(problems[:900]),
        'validation': list(problems[900:1000]),
        'test': list(problems[1000:]),
    }


def _first_name(film: str, alias: dict[str, str]) -> str:
    while film in alias:
        film = alias[film]
    return film


def _require(columns: Iterable[str], found: Iterable[str], path: Path) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(f'{path} has no column {", ".join(missing)}; found: {", ".join(found)}')
