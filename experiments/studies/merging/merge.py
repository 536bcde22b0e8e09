"""Merges the individual models of one method and seed, and scores the result."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import peftjax
from experiments.studies.merging.rules import Point
from experiments.studies.merging.runs import Bench, Individual, individual
from peftjax import merging
from peftjax.train import fisher
from peftjax.train.data.batches import collate
from peftjax.train.moments import Moments, moments
from peftjax.train.tasks.base import encoder_inputs

HEAD = r'classifier/.*'
CHANGED = {'lora': r'layers/.*/kernel', 'full': r'(?!classifier/).*'}
"""The leaves of the encoder that each method changes."""


class Merger:
    """The individual models of a seed as deltas, with their heads kept separately.

    Args:
        benches: of one method, by task.
        folder: with the models.
        seed: of the models.
    """

    def __init__(self, benches: Mapping[str, Bench], folder: Path, seed: int):
        self._benches, self._seed = benches, seed
        self._models = {name: individual(bench, folder, seed) for name, bench in benches.items()}
        self._key = jax.random.key(seed)
        self._deltas, self._heads = [], {}
        for name, found in self._models.items():
            whole = merging.delta(found.model, found.transform, found.adapter, found.frozen)
            self._deltas.append(merging.split(whole, HEAD)[1])
            self._heads[name] = tuned(found)['classifier']

    def score(self, point: Point, split: str) -> dict[str, float]:
        """Accuracy on each task, by its name."""
        pretrained = next(iter(self._models.values())).model
        encoder = merging.apply_delta(pretrained.params, self.delta(point))
        accuracy = {}
        for name, bench in self._benches.items():
            params = {**encoder, 'classifier': self._heads[name]}
            accuracy[name] = bench.score(params, split, self._seed)['accuracy']
        return accuracy

    def delta(self, point: Point) -> merging.Delta:
        """The four deltas, merged by a rule."""
        if not point.rule.startswith('core '):
            return self._rule(point, self._deltas)
        inside = point._replace(rule=point.rule.removeprefix('core '))
        return merging.from_cores(self._rule(inside, self._cores.cores), self._cores)

    def _rule(self, point: Point, deltas: Sequence[merging.Delta]) -> merging.Delta:
        # Rules without these settings do not read them.
        weight, kept = point.weight or 0.0, point.kept or 1.0
        rules: dict[str, Callable[[], merging.Delta]] = {
            'pretrained': lambda: merging.weighted_sum(deltas, 0.0),
            'average': lambda: merging.average(deltas),
            'fisher': lambda: merging.fisher(deltas, self.fisher_values),
            'regmean': lambda: merging.regmean(deltas, self.moments, off_diagonal=kept),
            'task arithmetic': lambda: merging.weighted_sum(deltas, weight),
            'ties': lambda: merging.ties(deltas, density=kept, scale=weight),
            'dare': lambda: merging.dare(deltas, self._key, density=kept, weights=weight),
        }
        return rules[point.rule]()

    @cached_property
    def _cores(self) -> merging.Cores:
        return merging.cores(self._deltas)

    @cached_property
    def fisher_values(self) -> list[Any]:
        """For each model, the mean squared gradient of the log-likelihood of its own examples."""
        return [
            fisher_values(bench, found, self._seed)
            for bench, found in zip(self._benches.values(), self._models.values(), strict=True)
        ]

    @cached_property
    def moments(self) -> list[Mapping[str, Moments]]:
        """For each model, the moments of the inputs of its kernels, on its own examples."""
        return [
            input_moments(bench, found, self._seed)
            for bench, found in zip(self._benches.values(), self._models.values(), strict=True)
        ]


def tuned(found: Individual) -> Any:
    """The parameters of a trained model."""
    return found.transform.merge(found.adapter, found.frozen)


def fisher_values(bench: Bench, found: Individual, seed: int) -> Any:
    """Fisher values of an encoder with its head, on examples that it was trained on."""
    params = tuned(found)
    changed, rest = peftjax.partition(params, CHANGED[bench.method])

    def log_likelihood(changed: Any, example: Any) -> jax.Array:
        batch = {name: jnp.asarray(each)[None] for name, each in example.items()}
        return -bench.totals(peftjax.combine(changed, rest), batch)['loss']

    return fisher(log_likelihood, changed, [_batch(bench, seed, bench.protocol.fisher_examples)])


def input_moments(bench: Bench, found: Individual, seed: int) -> Mapping[str, Moments]:
    """Moments of the inputs of an encoder's kernels, on examples that it was trained on."""
    params = tuned(found)
    batch = encoder_inputs(_batch(bench, seed, bench.protocol.moment_examples))
    parts = [
        {name: each[start : start + 64] for name, each in batch.items()}
        for start in range(0, bench.protocol.moment_examples, 64)
    ]
    return moments(
        found.model.replace(params=params),
        parts,
        targets='all-linear',
        counted=lambda part: part['attention_mask'],
    )


def _batch(bench: Bench, seed: int, count: int) -> Mapping[str, Any]:
    rows = bench.rows('train', seed)[:count]
    return collate(rows, bench.protocol.lengths[-1:])
