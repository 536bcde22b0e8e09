"""Decides which rows of a sweep may share a program: rows that differ only in data."""

import json
from collections.abc import Hashable
from typing import Any

import jax

import peftjax
from peftjax.train import program_key
from peftjax.train.run import Run
from peftjax.train.settings import Settings
from peftjax.train.step import TrainState

# Settings that decide when something happens, and on which data. They are equal in all rows of a
# program.
_SHARED = (
    *(
        'model',
        'task',
        'data',
        'log_every',
        'eval_every',
        'save_every',
        'accumulate',
        'mesh',
        'best',
    ),
    *('trackers', 'init_from'),
)
# Optimisers, and what is put around them, that treat each entry of the adapter by itself. What
# others compute depends on the size of a leaf, which is another when it is padded: Adafactor takes
# means, AdaLoRA's allocation counts triplets.
_ENTRYWISE = frozenset(
    'adabelief adagrad adam adamax adamw amsgrad lion nadam nadamw radam rmsprop sgd yogi '
    'lora_plus'.split()
)


def program_of(settings: Settings, run: Run, state: TrainState, frozen: peftjax.Frozen) -> Hashable:
    """A key that is equal for rows that may share a program.

    Args:
        settings: of the run.
        run: built from it.
        state, frozen: of its start, as shapes.
    """
    fixed = _static(settings, run), _structure(state, frozen)
    return program_key(run.transform), *fixed, _shapes(settings, run.transform, state, frozen)


def _static(settings: Settings, run: Run) -> str:
    """The settings that rows of a program share beside their methods: everything but numbers."""
    plain = settings.to_dict()
    shared = {name: plain[name] for name in _SHARED}
    sections = (settings.optimizer, *settings.around)
    around = {
        name: {k: str(v) for k, v in settings.section(name).items() if not isinstance(v, float)}
        for name in sections
    }
    parts = {
        'optimizer': settings.optimizer,
        'sections': around,
        'around': list(settings.around),
        'schedule': settings.schedule,
        'clips': bool(settings.clip_norm),
        'rates': sorted(settings.rates),
        'penalties': sorted(settings.penalties),
        # What is around an optimiser may count the steps of the run.
        'steps': run.steps if settings.around else None,
    }
    return json.dumps({**shared, **parts}, sort_keys=True)


def _structure(state: TrainState, frozen: peftjax.Frozen) -> Any:
    """Of a row's trees, without rates of dropout; ranks may differ where the method says so."""
    leaves = tuple((leaf.ndim, str(leaf.dtype)) for leaf in jax.tree.leaves(state))
    own, _ = jax.tree_util.tree_flatten_with_path(frozen.own)
    names = frozenset(jax.tree_util.keystr(path) for path, _ in own)
    numbers = frozenset(name for name in names if not name.endswith("['dropout']"))
    structures = jax.tree.structure(state.adapter), jax.tree.structure(frozen.params)
    return structures, leaves, numbers


def _shapes(
    settings: Settings, transform: peftjax.PeftTransform, state: TrainState, frozen: peftjax.Frozen
) -> Hashable:
    """The shapes that must be equal: all shapes except those of methods that may be padded.

    Penalties may count entries, so nothing is padded if there is one.
    """
    parts: Any = (state.adapter, frozen.own)
    if {settings.optimizer, *settings.around} <= _ENTRYWISE and not settings.penalties:
        parts = _not_padded(transform, *parts)
    # Plain numbers are left out: a rate of dropout may be missing.
    return tuple(leaf.shape for leaf in jax.tree.leaves((parts, frozen.params)) if leaf.shape)


def _not_padded(transform: peftjax.PeftTransform, adapter: Any, own: Any) -> Any:
    about = transform.about
    if about is None:
        return adapter, own
    if about.name == 'chain':
        members = zip(about.arguments['transforms'], adapter, own, strict=True)
        return [_not_padded(*each) for each in members]
    return None if about.padded_by else (adapter, own)
