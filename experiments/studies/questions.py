"""Runs of an encoder on texts of some classes; the runs of one method share their programs."""

import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

import peftjax
from experiments.studies.merging.tables import SPLITS, Table
from peftjax.train import read_settings, share, stack
from peftjax.train.build import build, build_model
from peftjax.train.data import corpora
from peftjax.train.data.batches import collate, eval_batches, train_batches
from peftjax.train.data.packing import Row
from peftjax.train.files import write_whole
from peftjax.train.optimizers import numbers_of
from peftjax.train.placement import Placement
from peftjax.train.task import Beside

HEAD = {'targets': r'classifier/.*'}
"""Arguments of `select` for the new head: every method trains all its weights."""


FULL = 'full'
"""Full fine-tuning, among the names of methods."""


def lora_and_full(ranks: Sequence[int], alpha: float) -> dict[str, Mapping[str, Any]]:
    """The settings of LoRA on all kernels of the layers, of several ranks, and of full fine-tuning.

    Example:
        >>> list(lora_and_full((1, 4), alpha=16.0))
        ['lora 1', 'lora 4', 'full']
    """
    found: dict[str, Mapping[str, Any]] = {
        f'lora {rank}': {
            'methods': ('lora', 'select'),
            'lora': {'rank': rank, 'alpha': alpha, 'targets': 'all-linear'},
            'select': HEAD,
        }
        for rank in ranks
    }
    return {**found, FULL: {'methods': (FULL,)}}


def title(method: str) -> str:
    """One of these methods in words.

    Example:
        >>> title('lora 4'), title('full')
        ('LoRA, rank 4', 'full fine-tuning')
    """
    return 'full fine-tuning' if method == FULL else f'LoRA, rank {method.split()[1]}'


class Budget(NamedTuple):
    """The length of a run.

    Attributes:
        steps: of the optimiser.
        batch_size: texts in a step.
    """

    steps: int
    batch_size: int


class Fitted(NamedTuple):
    """A model in training.

    Attributes:
        step: the number of steps so far.
        adapter: the trained arrays; the next step may delete them.
        beside: everything that does not train.
    """

    step: int
    adapter: Any
    beside: Beside


def rate_of(exponent: int) -> float:
    """The rate for an exponent of the grid of half decades.

    Example:
        >>> rate_of(-7)
        0.000316
    """
    return float(f'{10 ** (exponent / 2):.3g}')


class Bench:
    """A method on the texts: the encoder with a new head, the rows, the compiled programs.

    Attributes:
        run: the run of seed 0.
        summary: of the parameters that the method trains.

    Args:
        method: the setting `methods`, and the arguments of each method.
        table: of the texts.
        source: of the encoder.
        length: of all texts, in tokens; longer ones are cut.
        schedule: of the rate, after a warm-up over a tenth of the steps.
    """

    def __init__(
        self,
        method: Mapping[str, Any],
        table: Table,
        *,
        source: str,
        length: int,
        schedule: str = 'linear',
    ):
        labels = sorted({each.label for each in table['train']})
        with tempfile.TemporaryDirectory() as folder:
            for split in SPLITS:
                lines = [json.dumps(each._asdict()) + '\n' for each in table[split]]
                write_whole(Path(folder) / f'{split}.jsonl', ''.join(lines))
            self._settings = read_settings(
                {
                    'model': {'source': source, 'pooling': 'mean', 'num_labels': len(labels)},
                    'data': {
                        'source': f'{folder}/{{split}}.jsonl',
                        'columns': {'text': 'text', 'label': 'label'},
                        'labels': labels,
                        'batch_size': 1,
                        'lengths': (length,),
                    },
                    'adamw': {'weight_decay': 0.0},
                    'schedule': schedule,
                    'warmup': 0.1,
                    'clip_norm': 1.0,
                    'duration': '1 step',
                    **method,
                }
            )
            self.run = build(self._settings)
        self.summary = peftjax.summary(self.run.transform, self.run.model)
        self._step = jax.jit(self.run.step, donate_argnums=1)
        self._totals = jax.jit(self.run.totals)
        self._of_seed = functools.cache(self._seeded)

    def rows(self, split: str, count: int, seed: int) -> list[Row]:
        """Texts of a split, drawn by the seed; a smaller count gives a subset."""
        return corpora.draw(self.run.task.splits[split], count, seed)

    def points(
        self, rows: Sequence[Row], budget: Budget, rate: float, seed: int, marks: Sequence[int]
    ) -> Iterator[Fitted]:
        """Trains one model and yields it at the marks.

        Args:
            rows: to train on.
            budget: of the run.
            rate: at its peak.
            seed: of the head, the adapter and the order of the texts.
            marks: steps in rising order, 0 for the initial model; the run ends at the last one.
        """
        run = self._of_seed(seed)
        numbers = self._numbers(budget, rate)
        state, beside = run.start()
        if marks[0] == 0:
            yield Fitted(0, state.adapter, beside)
        batches = train_batches(
            rows,
            batch_size=budget.batch_size,
            lengths=run.task.lengths,
            seed=seed,
            steps=marks[-1],
        )
        for step, part in enumerate(batches, start=1):
            state, _ = self._step(numbers, state, beside, part.rows)
            if step in marks:
                yield Fitted(step, state.adapter, beside)

    def score(self, fitted: Fitted, rows: Sequence[Row]) -> dict[str, float]:
        """The mean loss and the accuracy of a model on some texts."""
        sums: dict[str, float] = {}
        for batch in eval_batches(rows, batch_size=64, lengths=self.run.task.lengths):
            for name, total in self._totals(fitted.adapter, fitted.beside, batch).items():
                sums[name] = sums.get(name, 0.0) + float(total)
        weight = sums.pop('weights')
        return {name: total / weight for name, total in sums.items()}

    def together(self, count: int, batch_size: int, repeats: int = 7) -> dict[str, float]:
        """Times steps of several runs in one program against steps of one run.

        Args:
            count: runs in the program, which differ in their seeds.
            batch_size: texts in a step of a run.
            repeats: timed steps of each kind, in turns.

        Returns:
            `alone` and `together`, the median seconds of a step of one run and of a step of all
            runs; and `factor`, how many times as fast a run is in the program.
        """
        starts = [self._of_seed(seed).start() for seed in range(count)]
        shared, axes = share([beside for _, beside in starts])
        numbers = jax.tree.map(jnp.float32, self._numbers(Budget(100, batch_size), 1e-4))
        batch = collate(self.rows('train', batch_size, 0), self.run.task.lengths)
        many = jax.jit(jax.vmap(self.run.step, in_axes=(0, 0, axes, 0)), donate_argnums=1)
        states = stack([state for state, _ in starts])
        state, beside = self._of_seed(0).start()
        all_numbers, all_batches = stack([numbers] * count), stack([batch] * count)
        seconds: dict[str, list[float]] = {'alone': [], 'together': []}
        for _ in range(repeats + 1):  # The first steps compile.
            began = time.perf_counter()
            state, _ = jax.block_until_ready(self._step(numbers, state, beside, batch))
            middle = time.perf_counter()
            states, _ = jax.block_until_ready(many(all_numbers, states, shared, all_batches))
            seconds['alone'].append(middle - began)
            seconds['together'].append(time.perf_counter() - middle)
        alone, together = (statistics.median(each[1:]) for each in seconds.values())
        return {'alone': alone, 'together': together, 'factor': count * alone / together}

    def _seeded(self, seed: int) -> Any:
        settings = self._settings.change({'seed': seed})
        model = build_model(settings, Placement.of(settings.mesh), self.run.model)
        return dataclasses.replace(self.run, model=model, seed=seed)

    def _numbers(self, budget: Budget, rate: float) -> dict[str, Any]:
        return {**numbers_of(self._settings, budget.steps), 'lr': rate}


class Shared(Protocol):
    """What the protocols of the studies with these runs have in common.

    Attributes:
        source: of the encoder.
        length: of all texts, in tokens.
    """

    @property
    def source(self) -> str: ...

    @property
    def length(self) -> int: ...


def bench_of(
    method: Mapping[str, Any], table: Table, protocol: Shared, schedule: str = 'linear'
) -> Callable[[], Bench]:
    """`bench()`: the bench of a method, built at the first call, so only if a row is missing."""
    return functools.cache(
        lambda: Bench(
            method, table, source=protocol.source, length=protocol.length, schedule=schedule
        )
    )
