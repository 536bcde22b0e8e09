"""The base model on a batch with an adapter for each row."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from peftjax.binding import calls, described
from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.core.quantized import like_dense
from peftjax.core.roles import Roles
from peftjax.serving.bank import Bank
from peftjax.serving.row_rules import Blocks
from peftjax.serving.rows import SHARED, Axes, Member, Method, mapped, row_axes


def adapt(model: Model) -> Callable[..., Any]:
    """`predict(bank, slots, frozen, *args, adapter_key=None, **kwargs)`: a mixed batch.

    Row `i` of the outputs equals the result of `peftjax.adapt` for row `i` alone with the adapter
    in slot `slots[i]`. The products with the base's weights stay whole. A program is compiled once
    for each shape of the batch; which adapters are in the bank, and in which rows, is data.
    Differentiable by the bank's adapters: see `Bank.replace`.

    Args:
      model: the base; only the shapes of its parameters are used.

    Returns:
      A pure function. `slots`: int [rows], for each row a slot of the bank, 0 for the base. Each
      array among the arguments has rows as its first axis; scalars are shared. Under `jax.jit`, a
      slot that is empty or does not exist gives NaN in its row. For packed rows, `slots` may be int
      [rows, blocks]: the tokens of each row are cut into blocks of equal length, and each block has
      an adapter. Pack each text so that it begins at the start of a block. This works for methods
      that act on weights.

    Raises:
      ValueError: at a call, slots that are empty or do not exist; an array whose first axis is not
        the rows; outputs that mix rows, such as a mean over the batch; slots for blocks of a
        method, or of a model, whose adapters act on more than single tokens.

    >>> mlp, key = peftjax.testing.tiny_mlp(), jax.random.key(0)
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> members = [(tx, *tx.init(jax.random.key(seed), mlp)) for seed in range(2)]
    >>> bank, frozen = peftjax.serving.bank(mlp, members)
    >>> predict = peftjax.serving.adapt(mlp)
    >>> predict(bank, jax.numpy.array([2, 0, 1]), frozen, jax.numpy.ones((3, 4))).shape
    (3, 3)
    """
    model = shapes_alone(model)

    @functools.partial(jax.jit, static_argnums=5)
    def compiled(
        bank: Bank,
        slots: Any,
        frozen: Frozen,
        key: Any,
        arrays: Any,
        structure: calls.Structure,
    ) -> Any:
        call = calls.Call(arrays, structure)
        rows = [0 if jnp.ndim(each) else SHARED for each in arrays]
        axes = Axes(rows, result_axes(model, call, rows))
        _check_rows(axes.results)
        keys = None if key is None else jax.random.split(key, len(slots))
        method, members = members_of(model, bank, slots, frozen.params)
        if bank.prepared is not None:
            method = method._replace(bank=bank.members(model, frozen.params))
        if slots.ndim == 2:
            method = method._replace(blocks=_blocks(model, call, slots.shape[1]))
        outputs = mapped(method, members, frozen.params, keys, call, axes)
        there = holds(bank, slots).reshape(len(slots), -1).all(axis=1)
        return jax.tree.map(lambda axis, leaf: _or_nan(leaf, there, axis), axes.results, outputs)

    def predict(
        bank: Bank,
        slots: Any,
        frozen: Frozen,
        *args: Any,
        adapter_key: jax.Array | None = None,
        **kwargs: Any,
    ) -> Any:
        slots = checked(bank, slots, frozen, blocks=True)
        call = calls.split(args, kwargs)
        if adapter_key is not None and bank.prepared is not None:
            raise ValueError(
                'a prepared bank has no dropout; with adapter_key pass bank.replace(prepared=None)'
            )
        for array in call.arrays:
            if np.ndim(array) and array.shape[0] != len(slots):
                raise ValueError(
                    f'an argument of the model is {list(array.shape)}, but slots names '
                    f'{len(slots)} rows; the first axis of arrays must be the rows'
                )
        return compiled(bank, slots, frozen, adapter_key, call.arrays, call.structure)

    return predict


def _blocks(model: Model, call: calls.Call, count: int) -> Blocks:
    """The blocks into which the rows of a call are cut.

    Raises:
      ValueError: no argument has the role of tokens; blocks of unequal lengths.
    """
    args, keywords = call.arguments()
    roles = model.roles or Roles()
    ids = described.by_name(model.signature, args, keywords).get(roles.token_ids or '')
    if ids is None:
        raise ValueError(
            'slots for blocks of a row need to know the tokens: write '
            "peftjax.wrap(..., roles=peftjax.Roles(token_ids='...')), or one slot for each row"
        )
    tokens = ids.shape[1]
    if tokens % count:
        raise ValueError(
            f'rows of {tokens} tokens are not {count} blocks of equal length; pad them to '
            f'{-(-tokens // count) * count}'
        )
    return Blocks(tokens, count)


def shapes_alone(model: Model) -> Model:
    """The model with shapes instead of parameters, so that it keeps no arrays alive."""
    return model.replace(params=like_dense(model.params))


def checked(bank: Bank, slots: Any, frozen: Frozen, *, blocks: bool = False) -> jax.Array:
    """`slots` as int32 [rows]; as [rows, blocks] where there may be `blocks`.

    Raises:
      TypeError: an argument of another type.
      ValueError: not a vector of whole numbers; slots that are empty or do not exist.
    """
    if not isinstance(bank, Bank) or not isinstance(frozen, Frozen):
        raise TypeError(
            f'found a {type(bank).__name__} for the bank and a {type(frozen).__name__} for frozen; '
            'write bank, frozen = peftjax.serving.bank(...) and predict(bank, slots, frozen, ...)'
        )
    rows = slots if isinstance(slots, jax.Array) else np.asarray(slots)
    if rows.ndim not in ((1, 2) if blocks else (1,)) or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise ValueError(
            f'slots is {rows.dtype}{list(rows.shape)}; write one whole number for each row'
        )
    if not any(isinstance(each, Tracer) for each in (rows, bank.filled)):
        for slot in np.unique(np.asarray(rows)):
            if refused := bank.refusal(int(slot)):
                raise ValueError(refused)
    return jnp.asarray(rows, jnp.int32)


def members_of(model: Model, bank: Bank, slots: jax.Array, params: Any) -> tuple[Method, Member]:
    """The part that all rows share, and the adapter of each row with its prepared arrays."""
    every, slot_axes = bank.members(model, params), bank.axes()
    flat, structure = jax.tree_util.tree_flatten_with_path(every)
    shared = _spread(slot_axes, every)
    depths = [
        None if axis is None else stack_depth(model, path, leaf)
        for (path, leaf), axis in zip(flat, shared, strict=True)
    ]
    leaves = [
        leaf if depth is None else _rows(leaf, slots, depth)
        for (_, leaf), depth in zip(flat, depths, strict=True)
    ]
    axes = jax.tree.unflatten(structure, depths)
    many_calls = bank.prepared is not None
    return Method(model, bank.transform, many_calls, axes), jax.tree.unflatten(structure, leaves)


def _spread(axes: Member, tree: Member) -> list[int | None]:
    """The axis of each leaf of `tree`, from axes that are given for whole branches."""
    found: list[int | None] = []
    jax.tree.map(
        lambda axis, branch: found.extend([axis] * len(jax.tree.leaves(branch))),
        axes,
        tree,
        is_leaf=lambda axis: axis is None,
    )
    return found


def stack_depth(model: Model, path: Any, leaf: jax.Array) -> int:
    """The number of layer axes that an array of a bank has after its slots.

    Rows come after them, so that a scan over layers takes the arrays without a transpose.
    """
    for entry in path:
        site: Any = getattr(entry, 'key', None)
        if site in model.sites.weights:
            layout = model.sites.weights[site].layout
            stack = () if layout is None else layout.stack_shape
        elif site in model.sites.modules:
            stack = model.sites.modules[site].stack
        else:
            continue
        return len(stack) if leaf.shape[1 : 1 + len(stack)] == tuple(stack) else 0
    return 0


def holds(bank: Bank, slots: jax.Array) -> jax.Array:
    """bool [rows]: True if the slot of a row is that of the base or holds an adapter."""
    inside = (slots > 0) & (slots < bank.slots)
    return (slots == 0) | (inside & jnp.take(bank.filled, slots, mode='clip'))


def _or_nan(leaf: jax.Array, there: jax.Array, axis: int) -> jax.Array:
    """An output with NaN in rows without an adapter, which are neither the base's nor another's."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    shape = [1] * leaf.ndim
    shape[axis] = len(there)
    return jnp.where(there.reshape(shape), leaf, jnp.full_like(leaf, jnp.nan))


def _rows(leaf: jax.Array, slots: jax.Array, depth: int) -> jax.Array:
    """The given slots of an array of a bank, with rows after `depth` axes."""
    stack = leaf.shape[1 : 1 + depth]
    count = math.prod(stack)
    flat = leaf.reshape(len(leaf) * count, *leaf.shape[1 + depth :])
    layer = jnp.arange(count).reshape(-1, *[1] * slots.ndim)
    places = jnp.clip(slots, 0, len(leaf) - 1)[None] * count + layer
    taken = jnp.take(flat, places, axis=0, mode='clip')
    return taken.reshape(*stack, *slots.shape, *leaf.shape[1 + depth :])


def result_axes(model: Model, call: calls.Call, axes: Sequence[int]) -> Any:
    """The axes of rows in the results of a call of the model, whose arrays have theirs at `axes`.

    `SHARED` where a result has none: the length of a cache, which all rows share.
    """

    def shapes(rows: int) -> Any:
        arrays = tuple(
            each if axis == SHARED else _with_rows(each, axis, rows)
            for each, axis in zip(call.arrays, axes, strict=True)
        )
        return jax.eval_shape(call.function(model.apply), model.params, arrays)

    return row_axes(shapes)


def _with_rows(array: Any, axis: int, rows: int) -> jax.ShapeDtypeStruct:
    shape = (*array.shape[:axis], rows, *array.shape[axis + 1 :])
    return jax.ShapeDtypeStruct(shape, array.dtype)


def _check_rows(axes: Any) -> None:
    named, _ = jax.tree_util.tree_flatten_with_path(axes)
    for path, axis in named:
        if axis == SHARED:
            raise ValueError(
                f'the output {jax.tree_util.keystr(path)} of the model has no axis of rows: it '
                'mixes rows, which may have different adapters; leave it out of the outputs'
            )
