"""Gradients of another library's adapter against those of ours."""

from typing import Any

import jax
import numpy as np

import peftjax
from tests.oracle.cases import Case
from tests.oracle.reading import Reading


def gradient_error(case: Case, reading: Reading, adapter: Any, gradient: Any) -> float:
    """The largest error of the gradient by our adapter, or along directions where it is computed.

    Raises:
        ValueError: a gradient is of a tensor that the adapter has not.
    """
    lost = sorted(set(case.gradients) - set(reading.values))
    if lost:
        raise ValueError(f'grads.safetensors has tensors that the adapter has not: {lost[:4]}')
    if not _rearranges(reading, adapter):
        theirs, slopes, sizes = _directions(case, reading, 1)
        return float(np.max(np.abs(slopes @ _flat(gradient) - theirs) / np.maximum(sizes, 1e-3)))
    theirs = reading.read(case.gradients)
    # Rounding is in proportion to all that flows back: in float64 as the judge, torch is off by 1 %
    # of the gradients behind a saturated attention, which are 2e-4 of the largest (RandLoRA).
    least = max(0.05 * float(np.abs(_flat(theirs)).max()), 1e-3)
    errors = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda *pair: relative_error(*pair, least=least), gradient, theirs)
    )
    wrong = _WRONG_GRADIENTS if case.config.get('peft_type') == 'C3A' else None
    counted = [e for path, e in errors if not (wrong and wrong in jax.tree_util.keystr(path))]
    return float(np.max(counted))  # Python's max would lose a NaN that is not the first.


# C3A's backward pass in peft transforms the kernel the wrong way round for the gradient of its
# input, so that what lies below the last layer is off; ours is that of the merged weight.
_WRONG_GRADIENTS = 'layers_0'


def comparable(case: Case) -> bool:
    """Whether there are gradients that ours are meant to equal.

    AdapterHub's DoRA differentiates the lengths of its columns; the paper's, and ours, does not. A
    cartridge with frozen tokens has gradients of the others alone; peft sets those of some tokens
    of a CPT to zero; multitask prompts are read for one task.
    """
    apart = case.config.get('peft_type') in ('CPT', 'MULTITASK_PROMPT_TUNING')
    if apart or case.config.get('num_frozen_tokens'):
        return False
    return bool(case.gradients) and not (case.hub and case.config['config'].get('use_dora'))


def _rearranges(reading: Reading, adapter: Any) -> bool:
    """Whether the adapter is the trained numbers, each once, in another order or of other sign."""
    ours, theirs = _flat(adapter), _flat(reading.values)
    return np.array_equal(np.sort(np.abs(ours)), np.sort(np.abs(theirs)))


def _directions(case: Case, reading: Reading, each: int) -> tuple[np.ndarray, ...]:
    """Derivatives along random directions, `each` for every trained tensor.

    Returns:
        The library's derivatives of the loss [n]; those of our adapter [n, numbers of it], central
        differences in float64; and how large the first are at most [n].
    """
    theirs, slopes, sizes, step = [], [], [], 1e-4
    values = {name: value.astype(np.float64) for name, value in reading.values.items()}
    random = np.random.default_rng(0)
    for name, value in values.items():
        gradient = case.gradients[name].astype(np.float64)
        for _ in range(each):
            direction = random.standard_normal(value.shape)
            up, down = (
                _flat(reading.read({**values, name: value + end * direction}))
                for end in (step, -step)
            )
            slopes.append((up - down) / (2 * step))
            theirs.append(np.sum(gradient * direction))
            sizes.append(np.linalg.norm(gradient))
    return np.array(theirs), np.array(slopes), np.array(sizes)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def errors_without_head(
    case: Case,
    model: peftjax.Model,
    reading: Reading,
    adapter: Any,
    frozen: peftjax.Frozen,
    gradients: bool,
) -> dict[str, float]:
    """Errors of the pooled states and of the gradients, where the head's weights are not known.

    The gradient by the head's weights tells the pooled states, since the logits are known. Whatever
    the head is, the gradient by the pooled states, a few numbers, decides that by every tensor:
    theirs must be what ours is for one such choice, found by least squares.
    """
    predict = peftjax.adapt(model, reading.transform)

    def states(adapter: Any) -> tuple[jax.Array, jax.Array]:
        pooled = predict(adapter, frozen, **case.inputs).pooler_output
        return pooled, pooled

    jacobian, pooled = jax.jit(jax.jacrev(states, has_aux=True))(adapter)
    assert case.labels is not None
    classes = case.outputs['logits'].shape[-1]
    missed = jax.nn.softmax(case.outputs['logits']) - np.eye(classes)[case.labels]
    by_head = np.asarray(missed).T @ np.asarray(pooled) / len(pooled)
    errors = {'pooled': relative_error(by_head, case.gradients['classifier.weight'])}
    if not gradients or not comparable(case):
        return errors
    rows = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(jacobian)]
    ours = np.concatenate([leaf.reshape(pooled.size, -1) for leaf in rows], 1).T
    if _rearranges(reading, adapter):
        known = {name: case.gradients[name] for name in reading.values}
        theirs = _flat(reading.read(known))
    else:
        each = 1 + 2 * pooled.size // len(reading.values)
        theirs, slopes, _ = _directions(case, reading, each)
        ours = slopes @ ours
    if len(theirs) < 2 * pooled.size:
        raise ValueError(f'{len(theirs)} gradients cannot tell anything')
    solution, *_ = np.linalg.lstsq(ours, theirs, rcond=None)
    return {**errors, 'gradients, whatever the head': relative_error(ours @ solution, theirs)}


def relative_error(mine: Any, theirs: Any, least: float = 1e-12) -> float:
    """Relative to the largest of theirs, or to `least` if that is larger."""
    mine, theirs = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    if mine.shape != theirs.shape:
        raise ValueError(f'shape {mine.shape}, theirs {theirs.shape}')
    return float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), least))
