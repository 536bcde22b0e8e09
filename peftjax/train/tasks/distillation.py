"""Distillation: a student learns the answers of a teacher beside those of the data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import peftjax
from peftjax.train.losses.distillation import distillation_loss
from peftjax.train.run import without_values
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.task import Batch, Forward, Task, Totals
from peftjax.train.tasks import base, classify, writing

Inner = Callable[[Settings, peftjax.Model], Task]


def classification(settings: Settings, model: peftjax.Model) -> Task:
    """As the task `classification`, with a teacher of the same classes beside the labels.

    The loss of an example is `(1 - share)` times its cross-entropy, and `share` times
    `losses.distillation.distillation_loss`. The teacher's parameters are `Task.constants`.

    Options: teacher, a checkpoint as `peftjax.load` takes it (merge an adapter first:
    `peftjax merge`); teacher_pooling, the pooling with which its head was trained ('first');
    temperature (2); share (0.5); and those of `classification`.

    Scores: those of `classification`; hard and soft, the two parts of the loss.

    Raises:
        SettingsError: no teacher; one without a trained head; one of another vocabulary.
        ValueError: from the loss, if the teacher has another number of classes.
    """
    return _distilled(
        settings, model, classify.classification, base.encoder_inputs, 'classification'
    )


def text(settings: Settings, model: peftjax.Model) -> Task:
    """As the task `text`, with a teacher of the same vocabulary; options: see `classification`.

    The logits of both models for a batch are in memory whole, `[B, T, vocabulary]` each.
    """
    return _distilled(settings, model, writing.text, _logits_inputs(settings), 'causal_lm')


def instructions(settings: Settings, model: peftjax.Model) -> Task:
    """As the task `instructions`, with a teacher of the same vocabulary; options: see `text`."""
    inputs = _logits_inputs(settings)
    return _distilled(settings, model, writing.instructions, inputs, 'causal_lm')


def _distilled(
    settings: Settings,
    model: peftjax.Model,
    inner: Inner,
    inputs: Callable[[Batch], dict[str, Any]],
    head: str,
) -> Task:
    defaults = {'teacher': '', 'teacher_pooling': 'first', 'temperature': 2.0, 'share': 0.5}
    given = settings.data.options
    own = {name: value for name, value in given.items() if name in defaults}
    rest = {name: value for name, value in given.items() if name not in defaults}
    options = base.options_of(_with_options(settings, own), **defaults)
    if not 0.0 <= options['share'] <= 1.0 or options['temperature'] <= 0.0:
        raise SettingsError(
            f'data.options.share is {options["share"]} and temperature {options["temperature"]}: '
            'a share is from 0 to 1, a temperature above 0'
        )
    task = inner(_with_options(settings, rest), model)
    teacher = _teacher(settings, model, head, options)
    constants, teacher = teacher.params, without_values(teacher)
    smoothing = rest.get('label_smoothing', 0.0)

    def totals(forward: Forward, batch: Batch) -> Totals:
        given = inputs(batch)
        logits = forward(given)
        wanted = jax.lax.stop_gradient(teacher.apply(forward.constants, **given))
        if logits.shape != wanted.shape:
            raise ValueError(
                f'the teacher {options["teacher"]} gives logits {list(wanted.shape)} and the '
                f'student {list(logits.shape)}: they need the same classes in the same order'
            )
        hard = base.weighted_totals(logits, batch, smoothing)
        counted = jnp.asarray(batch['targets']) >= 0
        weights = jnp.where(counted, jnp.asarray(batch['weights'], jnp.float32), 0.0)
        losses = distillation_loss(logits, wanted, options['temperature'])
        soft = jnp.where(weights > 0, losses * weights, 0.0).sum()
        share = options['share']
        loss = (1.0 - share) * hard['loss'] + share * soft
        return {**hard, 'loss': loss, 'hard': hard['loss'], 'soft': soft}

    return dataclasses.replace(task, totals=totals, constants=constants)


def _logits_inputs(settings: Settings) -> Callable[[Batch], dict[str, Any]]:
    """Inputs without the targets, so that a decoder returns its logits."""
    whole = base.decoder_inputs_of(settings)

    def inputs(batch: Batch) -> dict[str, Any]:
        return {name: value for name, value in whole(batch).items() if name != 'targets'}

    return inputs


def _with_options(settings: Settings, options: Mapping[str, Any]) -> Settings:
    data = dataclasses.replace(settings.data, options=options)
    return dataclasses.replace(settings, data=data)


def _teacher(
    settings: Settings, model: peftjax.Model, head: str, options: Mapping[str, Any]
) -> peftjax.Model:
    """The teacher; only its shapes if the student has no values either."""
    source = options['teacher']
    if not source:
        raise SettingsError(
            f'task {settings.task!r} needs a teacher: write --data.options.teacher CHECKPOINT'
        )
    abstract = isinstance(jax.tree.leaves(model.params)[0], jax.ShapeDtypeStruct)
    arguments: dict[str, Any] = {'task': head, 'abstract': abstract}
    if head == 'classification':
        arguments['pooling'] = options['teacher_pooling']
        arguments['num_labels'] = settings.model.num_labels or len(settings.data.labels) or None
    if settings.model.dtype is not None:
        arguments['dtype'] = settings.model.dtype
    teacher = peftjax.load(source, **arguments)
    if teacher.fresh:
        raise SettingsError(
            f'the teacher {source} has no trained head: {", ".join(teacher.fresh)} would be drawn '
            'at random'
        )
    if teacher.tokenizer is None or model.tokenizer is None:
        raise SettingsError(f'{settings.model.source} and {source} need a tokenizer.json each')
    ours, theirs = (each.tokenizer.backend.get_vocab() for each in (model, teacher))
    if ours != theirs:
        other = sorted(set(ours.items()) ^ set(theirs.items()))[:3]
        raise SettingsError(
            f'the teacher {source} has {len(theirs):,} tokens and the student {len(ours):,}, which '
            f'differ in {", ".join(str(each) for each in other)}: both need the same vocabulary'
        )
    return teacher
