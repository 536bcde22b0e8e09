"""Reads a reference case and holds our logits, loss and gradients to it.

A case is a folder: the adapter's config and tensors as the other library wrote them, inputs,
logits and loss, and the gradient of the loss by every tensor. `golden/oracle` holds the committed
ones. The same `convert` turns tensors into our adapter and gradients into ours: a method that keeps
the other library's parameters up to transposition has its gradients checked as well.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file

import peftjax

GOLDEN = Path(__file__).parents[1] / 'golden' / 'oracle'
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One reference adapter.

    Attributes:
        folder: where it lies, `<architecture>/<method>`.
        config: its adapter_config.json.
        tensors, gradients: by the other library's names.
        inputs: keyword arguments of the model.
        labels: token ids with -100 where none counts, or classes.
        logits, loss: what came out.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Tensors
    gradients: Tensors
    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    logits: np.ndarray
    loss: float

    @property
    def method(self) -> str:
        """The name of the case; AdapterHub's are told from peft's by a prefix."""
        return ('adapterhub ' if 'model_class' in self.config else '') + self.folder.name

    @property
    def base_architecture(self) -> str:
        """`bert`, `llama` or `gpt2`."""
        return self.folder.parent.name

    @property
    def headless(self) -> bool:
        """AdapterHub's files for BERT lack the classifier that they were made with."""
        return 'model_class' in self.config and self.base_architecture == 'bert'

    @property
    def model(self) -> peftjax.Model:
        """The base that the adapter was made for."""
        return load_base(base_folder(self.folder))


@dataclasses.dataclass(frozen=True)
class Converted:
    """A method of ours, and how the other library's tensors become its adapter.

    Attributes:
        transform: with the settings of the case's config.
        convert: a linear function `tensors -> adapter`, for values and for gradients.
        wrong_gradients: substring of the adapter's paths whose gradient the other library gets
            wrong, so that ours is not held to it.
        penalty: what the other library adds to the loss, a function of the adapter.
    """

    transform: peftjax.PeftTransform
    convert: Callable[[Tensors], Any]
    wrong_gradients: str | None = None
    penalty: Callable[[Any], jax.Array] | None = None


def base_folder(folder: Path) -> Path:
    """`<root>/<architecture>/base`; AdapterHub's cases stand one level deeper, beside no base."""
    near = folder.parent / 'base'
    return near if near.is_dir() else folder.parents[2] / folder.parent.name / 'base'


@functools.cache
def load_base(folder: Path) -> peftjax.Model:
    config = json.loads((folder / 'config.json').read_text())
    task = 'classification' if config['model_type'] == 'bert' else None
    labels = len(config['id2label']) if task else None
    # Layers in a loop: an adapter for one of them alone then needs no stack. The contract holds
    # scanned models to the same numbers.
    return peftjax.load(folder, task=task, num_labels=labels, scan=False)


def read_case(folder: Path) -> Case:
    weights = 'adapter_model' if (folder / 'adapter_model.safetensors').is_file() else 'adapter'
    with np.load(folder / 'inputs.npz') as file:
        inputs = {name: file[name].astype(np.int32) for name in file}
    with np.load(folder / 'logits.npz') as file:
        logits, loss = file['logits'], float(file['loss'])
    return Case(
        folder,
        json.loads((folder / 'adapter_config.json').read_text()),
        load_file(folder / f'{weights}.safetensors'),
        load_file(folder / 'grads.safetensors'),
        {name: value for name, value in inputs.items() if name != 'labels'},
        inputs['labels'],
        logits,
        loss,
    )


def loss_of(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    """Mean cross-entropy of the classes, or of the next tokens that have a label."""
    if logits.ndim == 2:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    # Virtual tokens stand in front of the others; none of them is a label.
    ahead = logits.shape[1] - labels.shape[1]
    labels = np.pad(labels, ((0, 0), (ahead, 0)), constant_values=-100)
    logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != -100
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, np.where(counted, labels, 0))
    return (losses * counted).sum() / counted.sum()


def compare(case: Case, ours: Converted, tolerance: float = 1e-5) -> dict[str, float]:
    """Errors of logits, loss and gradients, relative to the largest value of each.

    Raises:
        AssertionError: one is larger than `tolerance`, or an array is missing.
    """
    if case.headless:
        return _compare_without_head(case, ours, tolerance)
    model = case.model
    adapter = jax.tree.map(jnp.asarray, ours.convert(case.tensors))
    expected_shapes = jax.eval_shape(ours.transform.init, jax.random.key(0), model)
    assert jax.tree.structure(adapter) == jax.tree.structure(expected_shapes), (
        f'{case.folder.name}: converted {jax.tree.structure(adapter)}, init makes '
        f'{jax.tree.structure(expected_shapes)}'
    )
    predict = peftjax.adapt(model, ours.transform)

    def loss(adapter: Any) -> tuple[jax.Array, jax.Array]:
        logits = predict(adapter, model.params, **case.inputs)
        penalty = 0.0 if ours.penalty is None else ours.penalty(adapter)
        return loss_of(logits, case.labels) + penalty, logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter)
    theirs = case.logits
    if logits.ndim == 3:
        tokens = case.inputs['attention_mask'] == 1
        theirs = theirs[:, -tokens.shape[1] :][tokens]
        logits = logits[:, -tokens.shape[1] :][tokens]
    errors = {
        'logits': _error(logits, theirs),
        'loss': _error(value, np.asarray(case.loss)),
        'gradients': max(_gradient_errors(gradient, ours.convert(case.gradients), ours)),
    }
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f'{case.folder.parent.name}/{case.folder.name}: {wrong} above {tolerance}'
    return errors


def _compare_without_head(case: Case, ours: Converted, tolerance: float) -> dict[str, float]:
    """The error of all gradients together, where the head is not known.

    Whatever the head is, the gradient of the loss by the pooled states, a few numbers, decides the
    gradient by every tensor: theirs must be what ours is for one such choice, found by least
    squares.
    """
    model = peftjax.load(base_folder(case.folder), scan=False)
    predict = peftjax.adapt(model, ours.transform)
    adapter = jax.tree.map(jnp.asarray, ours.convert(case.tensors))
    pooled, back = jax.vjp(
        lambda adapter: predict(adapter, model.params, **case.inputs).pooler_output, adapter
    )
    basis = jnp.eye(pooled.size).reshape(pooled.size, *pooled.shape)
    rows = jax.tree.leaves(jax.vmap(lambda one: back(one)[0])(basis))
    matrix = np.concatenate([np.asarray(r, np.float64).reshape(pooled.size, -1) for r in rows], 1).T
    theirs = np.concatenate(
        [np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(ours.convert(case.gradients))]
    )
    assert len(theirs) > 2 * pooled.size, f'{len(theirs)} gradients cannot tell anything'
    solution, *_ = np.linalg.lstsq(matrix, theirs, rcond=None)
    errors = {'gradients, whatever the head': _error(matrix @ solution, theirs)}
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f'{case.folder.parent.name}/{case.folder.name}: {wrong} above {tolerance}'
    return errors


def _gradient_errors(mine: Any, theirs: Any, ours: Converted) -> list[float]:
    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(_error_beside_norm, mine, theirs))
    wrong = ours.wrong_gradients
    return [
        error for path, error in errors if wrong is None or wrong not in jax.tree_util.keystr(path)
    ]


def _error(mine: Any, theirs: Any) -> float:
    mine, theirs = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    assert mine.shape == theirs.shape, f'shape {mine.shape}, theirs {theirs.shape}'
    return float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-12))


def _error_beside_norm(mine: Any, theirs: Any) -> float:
    # A gradient that is zero but for rounding (a key's bias has no effect) has no relative error.
    mine, theirs = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    assert mine.shape == theirs.shape, f'shape {mine.shape}, theirs {theirs.shape}'
    size = np.abs(theirs).max()
    return float(np.abs(mine - theirs).max() / (max(size, 1e-3) if size > 1e-6 else 1.0))
