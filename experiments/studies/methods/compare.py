"""Compares methods on one task at one budget: accuracy against trained parameters.

    python -m experiments.studies.methods.compare --results runs/compare

By default it compares the methods of all configs on film reviews, with the frozen model (only the
head trains) and full fine-tuning among them; `--configs` chooses others. All methods get the same
sentences, steps and schedule. The rate is tuned for each:

1. One fit with seed 0 at each rate of a grid. While the best rate, by the loss on the validation
   films, is at the edge of the grid, the grid is extended there.
2. One fit at the best rate for each seed. The seed draws the training sentences, their order, the
   initial values and the noise. The fits are scored on the test films, which are not used to tune.

Every fit is kept in results.jsonl, so the command can be rerun to continue; results.md and
comparison.png are made from that file.
"""

import dataclasses
import functools
import importlib
import math
import pkgutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.console import Console

import configs
import peftjax
from experiments.studies.methods import scores
from experiments.studies.results import Results, best_exponent
from peftjax.train.artifacts import Artifacts
from peftjax.train.build import build
from peftjax.train.data import corpora
from peftjax.train.data.packing import Row
from peftjax.train.engine import Alone
from peftjax.train.files import write_whole
from peftjax.train.loop import Loop
from peftjax.train.member import Member
from peftjax.train.placement import Placement
from peftjax.train.progress import terminal
from peftjax.train.settings import Settings, read_settings
from peftjax.train.window import NonFiniteError

_FACTOR = 10**0.5  # between neighbours in the grid of rates
_FROZEN = {'frozen': 'lora_sentiment:head'}
_NOT_METHODS = ('args', 'base', 'lora_sentiment')
_RESULTS = flags.DEFINE_string('results', None, 'Folder for the results.', required=True)
_CONFIGS = flags.DEFINE_list(
    'configs', None, 'What to compare: a name in configs/, or name=config:argument. Default: all.'
)
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Final fits of each method.', lower_bound=1)
_TRAIN = flags.DEFINE_integer('train', 1024, 'Sentences to train on.', lower_bound=16)
_VALIDATION = flags.DEFINE_integer('validation', 384, 'Sentences to tune on.', lower_bound=16)
_TEST = flags.DEFINE_integer('test', 1024, 'Sentences to score on.', lower_bound=16)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings that all methods share.

    Attributes:
        seeds: the number of final fits of a method.
        length: of the longest sentence, in tokens; all batches are padded to it.
        train, validation, test: the number of sentences.
        batch_size, epochs: of a fit.
        rates: the grid, in half decades: exponents of `sqrt(10)`.
    """

    seeds: int = 5
    length: int = 24
    train: int = 1024
    validation: int = 384
    test: int = 1024
    batch_size: int = 16
    epochs: int = 1
    rates: tuple[int, ...] = (-7, -6, -5, -4)

    @property
    def steps(self) -> int:
        return self.epochs * (self.train // self.batch_size)


class Contestant:
    """A method, with its two programs, which are compiled once and used for all rates."""

    def __init__(self, settings: Settings, protocol: Protocol):
        changes = {'duration': f'{protocol.steps} steps', 'data.batch_size': protocol.batch_size}
        # All sentences; each fit draws some of them.
        changes |= {'data.options': {}, 'data.lengths': (80,)}
        self.protocol = protocol
        self.run = build(settings.change(changes))
        self.summary = peftjax.summary(self.run.transform, self.run.model)
        self._first: Alone | None = None

    def fit(self, exponent: int, seed: int, split: str) -> dict[str, Any]:
        """Trains one adapter, and returns its scores on the split."""
        began = time.perf_counter()
        protocol = self.protocol
        rows = {
            'train': corpora.draw(self._rows('train'), protocol.train, seed),
            split: corpora.draw(self._rows(split), getattr(protocol, split), seed=0),
        }
        task = dataclasses.replace(self.run.task, splits=rows, lengths=(protocol.length,))
        numbers = {**self.run.numbers, 'lr': _FACTOR**exponent}
        run = dataclasses.replace(
            self.run,
            task=task,
            numbers=numbers,
            seed=seed,
            **dict.fromkeys(('log_every', 'eval_every', 'save_every'), protocol.steps),
        )
        member, placement = Member(run, folder=None), Placement(None)
        # Numbers are arguments of the program, so that all rates share a program.
        engine = Alone(run, member.state, member.beside, placement, traced=True, like=self._first)
        self._first = self._first or engine
        ending, scores = Artifacts(), {'finite': True}
        loop = Loop([member], engine, None, ending=ending, tell=lambda *_: None)
        try:
            loop.run(lambda: False)
        except NonFiniteError:
            return {'finite': False, 'seconds': round(time.perf_counter() - began, 2)}
        scores |= {n: v for n, v in ending.results['run'].items() if n.startswith(f'{split}/')}
        return scores | {'seconds': round(time.perf_counter() - began, 2)}

    def _rows(self, split: str) -> list[Row]:
        rows = self.run.task.splits[split]
        return [row for row in rows if len(row['input_ids']) <= self.protocol.length]


def compare(
    contestants: Mapping[str, Settings], protocol: Protocol, folder: Path, console: Console
) -> list[dict[str, Any]]:
    """Tunes and fits every method, continuing from the rows in the folder.

    Args:
        contestants: the settings of each method, by its name.
        protocol: the settings that all methods share.
        folder: will hold protocol.json, results.jsonl, results.md and comparison.png.
        console: where each fit is reported.

    Returns:
        All rows of results.jsonl.

    Raises:
        ValueError: the folder has results of another protocol.
    """
    results = Results(folder, protocol)
    for name, settings in contestants.items():
        _compare_one(name, settings, protocol, results, console)
        scores.draw(results.rows, folder / 'comparison.png')
        write_whole(folder / 'results.md', scores.table(results.rows))
    return results.rows


def _compare_one(
    name: str, settings: Settings, protocol: Protocol, results: Results, console: Console
) -> None:
    # Built only if a fit is missing.
    contestant = functools.cache(lambda: Contestant(settings, protocol))

    def fit(stage: str, exponent: int, seed: int, split: str) -> dict[str, Any]:
        fields = {'method': name, 'stage': stage, 'exponent': exponent, 'seed': seed}
        row = results.find(**fields)
        if row is None:
            row = {
                **fields,
                'rate': float(f'{_FACTOR**exponent:.3g}'),
                'trainable': contestant().summary.trainable,
                'base': contestant().summary.base,
                **contestant().fit(exponent, seed, split),
            }
            results.add(row)
            console.print(_line(row), highlight=False)
        return row

    exponent = best_exponent(
        lambda exponent: _loss(fit('tune', exponent, 0, 'validation')), protocol.rates
    )
    for seed in range(protocol.seeds):
        fit('final', exponent, seed, 'test')


def load_configs(chosen: Sequence[str] | None) -> dict[str, Settings]:
    """Configs by their names in the comparison.

    Args:
        chosen: names in `configs/`, or `name=config:argument`; None for every config on film
            reviews, and the frozen model.

    >>> list(load_configs(['lora', 'frozen=lora_sentiment:head']))
    ['lora', 'frozen']
    """
    if chosen is None:
        names = (module.name for module in pkgutil.iter_modules(configs.__path__))
        found = {name: _load(name) for name in names if name not in _NOT_METHODS}
        frozen = {name: _load(spec) for name, spec in _FROZEN.items()}
        return frozen | {n: c for n, c in found.items() if c.task == 'film_reviews'}
    pairs = (item.rpartition('=')[::2] for item in chosen)
    return {name or spec: _load(spec) for name, spec in pairs}


def _load(spec: str) -> Settings:
    module, _, argument = spec.partition(':')
    make = importlib.import_module(f'configs.{module}').get_config
    return read_settings(make(argument) if argument else make())


def _loss(row: dict[str, Any]) -> float:
    value = row.get('validation/loss', math.inf)
    return value if row['finite'] and math.isfinite(value) else math.inf


def _line(row: dict[str, Any]) -> str:
    scores = '  '.join(f'{k} {v:.4f}' for k, v in row.items() if '/' in k)
    return (
        f'{row["method"]} {row["stage"]} rate {row["rate"]} seed {row["seed"]}: {scores}  '
        f'{row["seconds"]} s'
    )


def main(argv: Sequence[str]) -> None:
    """Runs the comparison that the flags describe."""
    if len(argv) > 1:
        sys.exit(f'unexpected argument {argv[1]!r}; settings are flags')
    protocol = Protocol(
        seeds=_SEEDS.value, train=_TRAIN.value, validation=_VALIDATION.value, test=_TEST.value
    )
    compare(load_configs(_CONFIGS.value), protocol, Path(_RESULTS.value), terminal())


if __name__ == '__main__':
    app.run(main)
