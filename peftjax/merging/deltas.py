"""From adapters and tuned models to deltas, and back to parameters."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.errors import AdapterError
from peftjax.core.frozen import Frozen, check_frozen
from peftjax.core.holes import is_hole
from peftjax.core.layout import Layout
from peftjax.core.merge import merged, refuse_quantized
from peftjax.core.model import Model
from peftjax.core.promotion import widened
from peftjax.core.sites import WeightSite, check_real
from peftjax.core.transform import PeftTransform
from peftjax.merging.changes import Delta, Factored, Full, check_delta, vector_layout
from peftjax.merging.factors import FACTORED, FACTORED_BY, STARTS_FROM_WEIGHT, factored, joined

_Part = tuple[PeftTransform, Any, Any]


def delta(model: Model, transform: PeftTransform, adapter: Adapter, frozen: Frozen) -> Delta:
    r"""What an adapter adds to the parameters of its model, `W' - W`, in float32.

    LoRA and its relatives (rsLoRA, LoRA-FA, AdaLoRA, VeRA) give their factors, with the scale in
    the left one, and no array of a weight's size is formed. PiSSA and OLoRA give `s A B - s A_0
    B_0`, of rank `2 r`, since their frozen weight lacks the initial product. All other methods
    that merge give the difference between the merged weight and the model's. Leaves that train as
    a whole (`select`: biases, heads) give their difference too.

    Args:
      model: the model that the adapter was made for, with its own parameters.
      transform, adapter, frozen: the transform, the trained adapter, and `frozen` as `init` gave
        it.

    Returns:
      `{leaf path: change}` for the leaves that the method acts on.

    Raises:
      MergeError: the method has no merged weight, or a leaf whose difference is needed is quantised
        (the error names it).
      AdapterError: the adapter is of another transform or for another model.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.chain(peftjax.lora(rank=2, targets=r'hidden'), peftjax.select(r'out/bias'))
    >>> peftjax.merging.delta(mlp, tx, *tx.init(jax.random.key(0), mlp))
    {'hidden/kernel': Factored((4, 8), rank 2), 'out/bias': Full((3,))}
    """
    _check_model(model)
    check_frozen(adapter, frozen)
    rules = transform.rules(adapter, frozen.own)
    found: dict[str, list[Factored] | None] = {}
    for part, entries, numbers in _parts(transform, adapter, frozen.own):
        terms = _factored(model, part, entries, numbers)
        for path in part.rules(entries, numbers):
            known = found.setdefault(path, [])
            found[path] = known + terms[path] if known is not None and path in terms else None
    leaves, before = paths.slots(frozen.params), paths.flatten(model.params)
    _check_leaves(found, leaves, before)
    whole = {path: rules[path] for path, factors in found.items() if factors is None}
    left = {path: leaves[path] for path in whole if path in leaves}
    after = merged(left, whole, jnp.float32)
    return {
        path: _difference(path, after[path], before[path], model.sites.weights)
        if factors is None
        else joined(factors)
        for path, factors in found.items()
    }


def _parts(transform: PeftTransform, adapter: Any, own: Any) -> Iterator[_Part]:
    """The methods of a chain, each with its part of the adapter and of the numbers."""
    about = transform.about
    if about is None or about.name not in ('chain', 'named_chain'):
        yield transform, adapter, own
        return
    members = about.arguments['transforms']
    names = members if isinstance(members, Mapping) else range(len(members))
    for name in names:
        yield from _parts(members[name], adapter[name], own[name])


def _factored(
    model: Model, transform: PeftTransform, adapter: Any, numbers: Any
) -> dict[str, list[Factored]]:
    """The terms `L R` that a method adds to each leaf; empty if its changes have another form."""
    if transform.about is None or transform.about.name not in FACTORED_BY:
        return {}
    if any(entry.method not in FACTORED for entry in adapter.values()):
        return {}  # A LoRA with its own bias changes more than the matrix.
    terms = {path: [factored(entry, numbers[path])] for path, entry in adapter.items()}
    if any(entry.method in STARTS_FROM_WEIGHT for entry in adapter.values()):
        start = transform.start(jax.random.key(0), model)
        for path, entry in start.items():
            terms[path].append(factored(entry, numbers[path]).scaled(-1.0))
    return terms


def _check_leaves(
    found: Mapping[str, Any], leaves: Mapping[str, Any], before: Mapping[str, Any]
) -> None:
    for path, factors in found.items():
        if path in leaves and path not in before:
            raise AdapterError(f'the adapter acts on {path!r}, which this model lacks')
        if factors is None:
            continue
        shape = factors[0].layout.shape
        if path not in before or before[path].shape != shape or is_hole(leaves.get(path)):
            there = before[path].shape if path in before else 'nothing'
            raise AdapterError(
                f'the adapter was made for {path!r} of shape {shape}, but this model has {there}. '
                'Was it made for another model?'
            )


def _difference(path: str, after: Any, before: Any, sites: Mapping[str, WeightSite] | None) -> Full:
    refuse_quantized(path, before)
    check_real(path, before, 'a delta')
    layout = _layout(path, after.shape, sites)
    change = jnp.asarray(after, jnp.float32) - jnp.asarray(before, jnp.float32)
    return Full(layout.to_matrix(change), layout)


def _layout(path: str, shape: tuple[int, ...], sites: Mapping[str, WeightSite] | None) -> Layout:
    """The layout of a leaf as matrices, or as a vector if it is one or nothing is known of it."""
    if sites is None or path not in sites:
        return vector_layout(shape)
    site = sites[path]
    if site.layout is None or site.vector:
        return vector_layout(shape, tuple(sorted(site.scanned)))
    return site.layout


def _check_model(model: Any) -> None:
    if not isinstance(model, Model):
        raise TypeError(
            f'model is a {type(model).__name__}; write delta(model, transform, adapter, frozen) '
            'with the model of peftjax.load or peftjax.wrap'
        )


def delta_of(params: Any, base: Model | Any) -> Delta:
    """What a full fine-tuning changed: the tuned parameters minus those of the base, in float32.

    Args:
      params: the parameters of the tuned model, or the `Model`.
      base: the model that the tuning started from. Its parameters are enough for rules that treat
        every number separately. Functions that need to know which axes are inputs, such as
        `to_lora` and `regmean`, need a `Model` here.

    Returns:
      `{leaf path: Full}` for every leaf of floats; whole numbers do not train.

    Raises:
      ValueError: the trees differ in paths or shapes.
      MergeError: a leaf is quantised.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tuned = jax.tree.map(lambda leaf: leaf + 1, mlp.params)
    >>> peftjax.merging.delta_of(tuned, mlp)['out/bias'].values
    Array([[1., 1., 1.]], dtype=float32)
    """
    sites = base.sites.weights if isinstance(base, Model) else None
    before = paths.flatten(base.params if isinstance(base, Model) else base)
    after = paths.flatten(params.params if isinstance(params, Model) else params)
    if unknown := sorted(set(before) ^ set(after)):
        raise ValueError(
            f'params and base differ in {unknown[0]!r}{paths.nearby(unknown[0], before)}; give the '
            'parameters of two models of one shape'
        )
    found = {}
    for path, leaf in after.items():
        refuse_quantized(path, leaf)
        if leaf.shape != before[path].shape:
            raise ValueError(
                f'{path!r} is {leaf.shape} in params and {before[path].shape} in base; a head of '
                'other classes is not a change of the old head: leave it out of both'
            )
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            found[path] = _difference(path, leaf, before[path], sites)
    return found


def apply_delta(params: Any, delta: Delta) -> Any:
    """`params` with a delta added: plain parameters, each leaf in its own dtype.

    The sum is taken in float32 or wider and rounded once; see `peftjax.merge_loss` for what
    rounding to bfloat16 loses. Differentiable in `params` and `delta`.

    Args:
      params: the parameters of the base model, or the `Model`; the result is then a model with the
        new parameters.
      delta: the delta of an adapter or of a tuned model, or the result of a rule.

    Raises:
      MergeError: a leaf that changes is quantised.
      ValueError: a path is not in `params`, or of another shape.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> delta = peftjax.merging.delta_of(jax.tree.map(lambda leaf: leaf + 1, mlp.params), mlp)
    >>> peftjax.merging.apply_delta(mlp.params, delta)['out']['bias']
    Array([1., 1., 1.], dtype=float32)
    """
    check_delta(delta)
    if isinstance(params, Model):
        return params.replace(params=apply_delta(params.params, delta))
    leaves = paths.slots(params)
    changed = {}
    for path, change in delta.items():
        if path not in leaves:
            raise ValueError(
                f'the delta changes {path!r}, which params lack{paths.nearby(path, leaves)}'
            )
        leaf = leaves[path]
        refuse_quantized(path, leaf, 'peftjax.dequantize(params)')
        if is_hole(leaf) or leaf.shape != change.layout.shape:
            there = repr(leaf) if is_hole(leaf) else f'{leaf.shape} {leaf.dtype}'
            raise ValueError(
                f'the delta changes {path!r} of shape {change.layout.shape}, but params have '
                f'{there}'
            )
        whole, added = widened((leaf, change.layout.from_matrix(change.matrix())))
        changed[path] = (whole + added).astype(leaf.dtype)
    return paths.replace(params, changed)
