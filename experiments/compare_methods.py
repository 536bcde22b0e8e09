"""Compares methods on one task at one budget: accuracy against trained parameters.

    python -m experiments.compare_methods --results runs/compare

Every method is the default of its config, on film reviews, between the frozen model (only the head
trains) and the training of all weights; `--configs` takes others. All get the same sentences, steps
and schedule; the rate is tuned for each:

1. one fit at each rate of a grid with seed 0; while the best, by the loss on the validation films,
   is the grid's least or greatest, the next rate outwards is tried;
2. one fit at that rate for each seed, which draws the training sentences, their order, the initial
   values and the noise; scored on the test films, which choose nothing.

The folder keeps every fit in results.jsonl and is gone on with; results.md and comparison.png are
drawn from it.
"""

import dataclasses
import functools
import importlib
import math
import pkgutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from rich.console import Console

import configs
import peftjax
from experiments import comparison
from peftjax.train import build, init_state, make_train_step
from peftjax.train.config import Config
from peftjax.train.data.batches import Batch, collate
from peftjax.train.data.packing import Row
from peftjax.train.optimizers import build_optimizer, numbers_of
from peftjax.train.progress import terminal

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
    """What all methods share.

    Attributes:
        seeds: how many final fits a method gets.
        length: longest sentence used, in tokens; all batches are padded to it.
        train, validation, test: sentences.
        batch_size, epochs: of a fit.
        rates: the grid, in half decades: powers of `sqrt(10)`, as exponents.
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
    """A method, with the two programs that its fits need: compiled once, used for all rates."""

    def __init__(self, config: Config, protocol: Protocol):
        with config.unlocked():
            config.duration = f'{protocol.steps} steps'
            config.data.batch_size = protocol.batch_size
        self.protocol = protocol
        self.run = build.build(config)
        self.summary = peftjax.summary(self.run.transform, self.run.model)
        self._fit = jax.jit(_fit(config, self.run))
        self._sums = jax.jit(self.run.sums)

    def fit(self, exponent: int, seed: int, split: str) -> dict[str, Any]:
        """Trains one adapter; its scores on the split."""
        began = time.perf_counter()
        init_key, step_key = jax.random.split(jax.random.key(seed))
        # Operation by operation, as in training: the decompositions of some starts, many of them in
        # one program, can lock up the two threads of a small CPU (jax 0.10.2).
        adapter, frozen = self.run.transform.init(init_key, self.run.model)
        batches = _stack(_training_batches(self._rows('train'), self.protocol, seed))
        adapter, losses = self._fit(adapter, frozen, _FACTOR**exponent, step_key, batches)
        scores = {'finite': bool(np.isfinite(losses).all())}
        rows = _chosen(self._rows(split), getattr(self.protocol, split), seed=0)
        batched = _batches(rows, self.protocol)
        found = build.evaluate(lambda batch: self._sums(adapter, frozen, batch), batched)
        scores |= {f'{split}/{name}': value for name, value in found.items()}
        return scores | {'seconds': round(time.perf_counter() - began, 2)}

    def _rows(self, split: str) -> list[Row]:
        rows = self.run.task.splits[split]
        return [row for row in rows if len(row['input_ids']) <= self.protocol.length]


def compare(
    contestants: Mapping[str, Config], protocol: Protocol, folder: Path, console: Console
) -> list[dict[str, Any]]:
    """Tunes and fits every method, going on from what the folder holds.

    Args:
        contestants: what each method is called, and its config.
        protocol: what all share.
        folder: gets protocol.json, results.jsonl, results.md and comparison.png.
        console: where each fit is reported.

    Returns:
        All rows of results.jsonl.

    Raises:
        ValueError: the folder was begun with another protocol.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = comparison.Results(folder, dataclasses.asdict(protocol))
    for name, config in contestants.items():
        _compare_one(name, config, protocol, results, console)
        comparison.draw(results.rows, folder / 'comparison.png')
        (folder / 'results.md').write_text(comparison.table(results.rows), encoding='utf-8')
    return results.rows


def _compare_one(
    name: str, config: Config, protocol: Protocol, results: comparison.Results, console: Console
) -> None:
    # Built when the first fit is missing.
    contestant = functools.cache(lambda: Contestant(config, protocol))

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


def best_exponent(loss: Callable[[int], float], grid: Sequence[int]) -> int:
    """The exponent of least loss, looked for outwards while it is at the edge of those tried.

    >>> best_exponent(lambda exponent: (exponent + 9) ** 2, (-7, -6, -5))
    -9
    """
    tried = {exponent: loss(exponent) for exponent in grid}
    while True:
        best = min(tried, key=lambda exponent: tried[exponent])
        if best == min(tried):
            tried[best - 1] = loss(best - 1)
        elif best == max(tried):
            tried[best + 1] = loss(best + 1)
        else:
            return best


def load_configs(chosen: Sequence[str] | None) -> dict[str, Config]:
    """Configs by what a comparison calls them.

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
        return frozen | {n: c for n, c in found.items() if c.data.name == 'film_reviews'}
    pairs = (item.rpartition('=')[::2] for item in chosen)
    return {name or spec: _load(spec) for name, spec in pairs}


def _load(spec: str) -> Config:
    module, _, argument = spec.partition(':')
    return importlib.import_module(f'configs.{module}').get_config(argument)


def _fit(config: Config, run: build.Run) -> Callable[..., tuple[Any, jax.Array]]:
    """`fit(adapter, frozen, rate, key, batches)`: the trained adapter and all losses."""

    def fit(
        adapter: Any, frozen: peftjax.Frozen, rate: jax.Array, key: jax.Array, batches: Batch
    ) -> tuple[Any, jax.Array]:
        # The rate is traced, so that all rates share one program.
        numbers = {**numbers_of(config, run.steps), 'lr': rate}
        optimizer = build_optimizer(config, run.steps, numbers)
        step = make_train_step(run.loss, optimizer)
        state, metrics = jax.lax.scan(
            lambda state, batch: step(state, frozen, batch),
            init_state(adapter, optimizer, key),
            batches,
        )
        return state.adapter, metrics['loss']

    return fit


def _training_batches(rows: list[Row], protocol: Protocol, seed: int) -> list[Batch]:
    chosen = _chosen(rows, protocol.train, seed)
    random = np.random.default_rng((seed, 1))
    passes = [random.permutation(len(chosen)) for _ in range(protocol.epochs)]
    return _batches([chosen[i] for order in passes for i in order], protocol)


def _chosen(rows: list[Row], count: int, seed: int) -> list[Row]:
    if len(rows) < count:
        raise ValueError(f'{count} sentences are asked for, {len(rows)} are short enough')
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:count]]


def _batches(rows: list[Row], protocol: Protocol) -> list[Batch]:
    size = protocol.batch_size
    return [
        collate(rows[start : start + size], (protocol.length,))
        for start in range(0, len(rows) - size + 1, size)
    ]


def _stack(batches: list[Batch]) -> Batch:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _loss(row: dict[str, Any]) -> float:
    value = row['validation/loss']
    return value if row['finite'] and math.isfinite(value) else math.inf


def _line(row: dict[str, Any]) -> str:
    scores = '  '.join(f'{k} {v:.4f}' for k, v in row.items() if '/' in k)
    return (
        f'{row["method"]} {row["stage"]} rate {row["rate"]} seed {row["seed"]}: {scores}  '
        f'{row["seconds"]} s'
    )


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        sys.exit(f'unexpected argument {argv[1]!r}; settings are flags')
    protocol = Protocol(
        seeds=_SEEDS.value, train=_TRAIN.value, validation=_VALIDATION.value, test=_TEST.value
    )
    compare(load_configs(_CONFIGS.value), protocol, Path(_RESULTS.value), terminal())


if __name__ == '__main__':
    app.run(main)
