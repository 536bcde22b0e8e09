"""Holds what our library computes with another library's adapter to what that library computed.

The adapter comes in through `peftjax.load_adapter`, and so does its gradient: a file of the same
form, whose tensors are the gradients, is read as an adapter. That is the gradient by our arrays
where reading only moves numbers (transposes, splits, signs). Where it computes with them,
derivatives along random directions of the file's tensors are compared instead.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import peftjax
from tests.oracle.beyond import completed
from tests.oracle.cases import Case, Tensors
from tests.oracle.gradients import comparable, errors_without_head, gradient_error, relative_error
from tests.oracle.reading import Reading, file_reading

# Both sides compute in float32: 1.7e-5 were seen (RandLoRA), and of gradients 7e-5.
TOLERANCE = 3e-5
_LOOSER = 3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`errors`, relative to the largest value of each; `refused`: why the file cannot be read."""

    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    refused: str | None = None
    tolerance: float = TOLERANCE

    @property
    def wrong(self) -> bool:
        """Whether an error is larger than it may be, or no number."""
        return any(
            not error <= self.tolerance * (_LOOSER if name.startswith('gradients') else 1)
            for name, error in self.errors.items()
        )


def judge(case: Case, *, scan: bool = False, tolerance: float = TOLERANCE) -> Verdict:
    """The case as `peftjax.load_adapter` reads it, and with what its file leaves out.

    What is refused, and yet said beside the file, has errors and the reason of the refusal. Of
    scanned layers the logits and the loss of the file alone are judged.
    """
    try:
        model = _averaging(case, case.model(scan))
    except ValueError as error:
        return Verdict(refused=str(error))
    whole, refused, errors = None if scan else completed(case, model), None, {}
    if 'task_ids' in case.inputs:
        try:
            return Verdict(_errors_by_task(case, model), tolerance=tolerance)
        except peftjax.CheckpointError as error:
            return Verdict(refused=str(error))
    try:
        loaded = peftjax.load_adapter(case.folder, model, **case.told)
    except ValueError as error:
        refused = str(error)
    else:
        own = file_reading(case, model, _with_virtual(loaded.transform))
        errors = errors_of(case, model, own, gradients=whole is None and not scan)
    if whole is not None:
        more = errors_of(case, model, whole)
        errors |= {f'{name}, completed': error for name, error in more.items()}
    return Verdict(errors, refused, tolerance)


def _errors_by_task(case: Case, model: peftjax.Model) -> dict[str, float]:
    """Errors of logits and loss of a file with a prompt for each task, each row by its own."""
    inputs, found = dict(case.inputs), None
    tasks = inputs.pop('task_ids')
    for task in np.unique(tasks):
        loaded = peftjax.load_adapter(case.folder, model, task=int(task))
        transform = _with_virtual(loaded.transform)
        adapter = jax.tree.map(jnp.asarray, loaded.adapter)
        predict = jax.jit(functools.partial(peftjax.adapt(model, transform), **inputs))
        logits = np.asarray(predict(adapter, transform.freeze(model, adapter)))
        found = np.zeros_like(logits) if found is None else found
        found[tasks == task] = logits[tasks == task]
    assert found is not None
    errors = {'logits': relative_error(*written(case, found, case.outputs['logits']))}
    if 'loss' in case.outputs:
        errors['loss'] = relative_error(_loss(case, jnp.asarray(found), None), case.outputs['loss'])
    return errors


def _averaging(case: Case, model: peftjax.Model) -> peftjax.Model:
    """The model whose gates average padding too where the library's do, as AdapterHub's."""
    if not (case.hub and '"use_gating": true' in json.dumps(case.config)):
        return model
    assert model.roles is not None
    masks = tuple(each for each in (model.roles.mask, model.roles.decoder_mask) if each)
    roles = dataclasses.replace(model.roles, mask='', decoder_mask='', other=masks)
    return model.replace(roles=roles)


def _with_virtual(transform: peftjax.PeftTransform) -> peftjax.PeftTransform:
    """A prompt that leaves the virtual positions in the outputs, as peft's do."""
    about = transform.about
    if about is None or about.name != 'prompt_tuning':
        return transform
    return peftjax.prompt_tuning(**{**about.arguments, 'keep_virtual': True})


def errors_of(
    case: Case, model: peftjax.Model, reading: Reading, gradients: bool = True
) -> dict[str, float]:
    """Errors of logits and loss, and with `gradients` of them and of merged logits, if there."""
    adapter = jax.tree.map(jnp.asarray, reading.read(reading.values))
    frozen = reading.transform.freeze(model, adapter)
    if case.headless and 'last_hidden_state' not in case.outputs:
        return errors_without_head(case, model, reading, adapter, frozen, gradients)
    predict = peftjax.adapt(model, reading.transform)

    def loss(adapter: Any) -> tuple[jax.Array, jax.Array]:
        output = predict(adapter, frozen, **case.inputs)
        logits = getattr(output, 'last_hidden_state', output)
        return _loss(case, logits, adapter), logits

    known = comparable(case) and gradients
    run = jax.value_and_grad(loss, has_aux=True) if known else lambda a: (loss(a), None)
    (value, logits), gradient = jax.jit(run)(adapter)
    theirs = case.outputs.get('logits', case.outputs.get('last_hidden_state'))
    errors = {'logits': relative_error(*written(case, logits, theirs))}
    if 'loss' in case.outputs:
        errors['loss'] = relative_error(value, case.outputs['loss'])
    if gradients and 'merged_logits' in case.outputs:
        params = jax.jit(reading.transform.merge)(adapter, frozen)
        merged = applied(model)(params, case.inputs)
        errors['merged'] = relative_error(*written(case, merged, _merged(case)))
    if known:
        errors['gradients'] = gradient_error(case, reading, adapter, gradient)
    return errors


@functools.cache
def applied(model: peftjax.Model) -> Callable[[Any, Tensors], jax.Array]:
    return jax.jit(lambda params, inputs: model.apply(params, **inputs))


def _merged(case: Case) -> np.ndarray:
    """Their merged logits, or those without merging where theirs differ and are wrong."""
    merged, plain = case.outputs['merged_logits'], case.outputs['logits']
    return merged if np.abs(merged - plain).max() < 0.1 * np.abs(plain).max() else plain


def written(case: Case, ours: Any, theirs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both where a token is written, and not where padding is."""
    mask = case.inputs.get('decoder_attention_mask', case.inputs.get('attention_mask'))
    if mask is None or theirs.ndim == 2:
        return ours, theirs
    virtual = theirs.shape[1] - mask.shape[1]
    if virtual and case.config_of_base().get('sliding_window'):
        # Padding on the left pushes peft's prompt out of the window, and ours stands behind it.
        mask = mask * mask[:, :1]
    tokens = np.pad(mask, ((0, 0), (virtual, 0)), constant_values=1) == 1
    tokens &= mask.any(axis=1, keepdims=True)
    return np.asarray(ours)[tokens], theirs[tokens]


def _loss(case: Case, logits: jax.Array, adapter: Any) -> jax.Array:
    """Mean cross-entropy of classes or of tokens that have a label, and AdaLoRA's penalty."""
    if case.labels is None or 'loss' not in case.outputs:
        return jnp.zeros(())
    penalty = 0.0
    if case.config.get('peft_type') == 'ADALORA':
        weight = case.config['orth_reg_weight']
        penalty = weight * peftjax.orthogonality(_methods_part(adapter), squared=False)
    labels = case.labels
    if case.config.get('peft_type') == 'CPT':
        # Its own loss counts the tokens of a prompt whose type is that of an answer.
        ids, kinds = (
            np.asarray(case.config[f'cpt_{n}']) for n in ('token_ids', 'tokens_type_mask')
        )
        first = np.where((kinds > 0) & (kinds % 4 == 0), ids, -100)
        labels = np.concatenate([np.tile(first, (len(labels), 1)), labels], axis=1)
    if logits.ndim == 3:
        # Virtual tokens stand in front of the others; none of them is a label.
        ahead = logits.shape[1] - labels.shape[1]
        labels = np.pad(labels, ((0, 0), (ahead, 0)), constant_values=-100)
        if case.kind.endswith(('ForCausalLM', 'LMHeadModel')):
            logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != -100
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, np.where(counted, labels, 0))
    return jnp.where(counted, losses, 0.0).sum() / counted.sum(dtype=np.float32) + penalty


def _methods_part(adapter: Any) -> Any:
    """Of a chain with leaves that are trained whole, the method's own."""
    return adapter[-1] if isinstance(adapter, tuple) else adapter
