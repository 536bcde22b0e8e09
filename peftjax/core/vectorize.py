"""Many adapters of one model in one tree, for `jax.vmap`: runs side by side, and banks.

Every number of a run is an argument of its step: the adapter, the optimiser's state,
`frozen.own` (scales, rates of dropout, projections), the key, and the rates and decays of the
optimiser where the step takes them. So K runs are a `jax.vmap` of the step:

    def step(numbers, state, frozen, batch):
        optimizer = optax.adamw(numbers['rate'], weight_decay=numbers['decay'])
        return make_train_step(loss, optimizer)(state, frozen, batch)

    frozen, axes = share([frozen for _, frozen in starts])
    many = jax.jit(jax.vmap(step, in_axes=(0, 0, axes, None)))

A rank is a length and not a number: an adapter of a smaller rank is padded with zeros, and the step
is that of the largest rank. `program_key` says which transforms may share a step.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.entries import Entry
from peftjax.core.numbers import is_plain
from peftjax.core.transform import About, PeftTransform


def program_key(transform: PeftTransform, *, masked: bool = False) -> Hashable:
    """A key that is equal for transforms that can share a program: they differ only in data.

    Arguments that are real numbers are in the adapter or in `frozen.own`. So is the argument that
    `padded_by` names, where the method says that zeros beyond it change nothing. Any other
    argument must be the same, arrays too; `share` refuses runs whose methods have other numbers. A
    transform made of plain functions shares a program only with itself.

    Args:
        transform: the method, or a chain.
        masked: True if rules are shortened, so that the number of virtual tokens may differ too.

    Example:
        >>> lora = peftjax.lora
        >>> first, second = (program_key(lora(rank=n, alpha=n, targets='hidden')) for n in (1, 2))
        >>> first == second
        True
        >>> first == program_key(lora(rank=1, targets='out'))
        False
    """
    about = transform.about
    if about is None:
        return transform  # Hashed by identity, and kept alive by the key.
    return about.name, tuple(
        (name, _static(value, masked))
        for name, value in sorted(about.arguments.items())
        if name != about.padded_by and not (masked and name == about.masked_by)
        if not _is_number(about, name)
    )


def _is_number(about: About, name: str) -> bool:
    value = about.arguments[name]
    return name in about.floats and (value is None or is_plain(value) or isinstance(value, dict))


def _static(value: Any, masked: bool) -> Hashable:
    if isinstance(value, PeftTransform):
        return program_key(value, masked=masked)
    if isinstance(value, Mapping):
        return tuple((name, _static(each, masked)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(_static(each, masked) for each in value)
    if isinstance(value, jax.Array | np.ndarray):
        array = np.asarray(value)
        return array.shape, str(array.dtype), array.tobytes()
    return value if isinstance(value, Hashable) else repr(value)


def stack(runs: Sequence[Any]) -> Any:
    """Stacks trees of several runs along a new first axis; smaller shapes are padded with zeros.

    Example:
        >>> stack([{'a': jnp.ones(2)}, {'a': jnp.ones(1)}])['a'].tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    return jax.tree.map(lambda *leaves: _stack(leaves), *runs)


def share(trees: Sequence[Any]) -> tuple[Any, Any]:
    """Stacks trees of several runs, but keeps a leaf once if all runs have the same values.

    Leaves that are one array in each of the trees are one array in the result. If only some runs
    have a rate of dropout, it is 0 in the others.

    Returns:
        The tree, and of the same structure the axes for `jax.vmap`: None or 0.

    Example:
        >>> mlp, key = peftjax.testing.tiny_mlp(), jax.random.key(0)
        >>> methods = [peftjax.lora(rank=2, alpha=each, targets=r'hidden') for each in (2, 4)]
        >>> frozen, axes = share([tx.init(key, mlp)[1] for tx in methods])
        >>> frozen.own['hidden/kernel']['scale'].tolist(), axes.own['hidden/kernel']['scale']
        ([1.0, 2.0], 0)
        >>> frozen.params['hidden']['kernel'].shape, axes.params['hidden']['kernel']
        ((4, 8), None)
    """
    trees = _with_rates(trees)
    columns = list(zip(*map(jax.tree.leaves, trees), strict=True))
    alike = [
        all(each is column[0] or _equal(each, column[0]) for each in column) for column in columns
    ]
    structure = jax.tree.structure(trees[0])
    stacked = {
        _ids(column): column for same, column in zip(alike, columns, strict=True) if not same
    }
    stacked = {ids: _stack(column) for ids, column in stacked.items()}
    leaves = [
        column[0] if same else stacked[_ids(column)]
        for same, column in zip(alike, columns, strict=True)
    ]
    axes = [None if same else 0 for same in alike]
    return jax.tree.unflatten(structure, leaves), jax.tree.unflatten(structure, axes)


def _with_rates(trees: Sequence[Any]) -> list[Any]:
    """The trees, with a rate of dropout of 0 where it is missing and other runs have one."""
    first = trees[0]
    if isinstance(first, Entry):
        inside = _with_rates([dict(tree) for tree in trees])
        return [Entry(first.method, each, first.layout) for each in inside]
    if isinstance(first, dict):
        _check_names(trees)
        rates = [tree['dropout'] for tree in trees if 'dropout' in tree]
        some = 0 < len(rates) < len(trees)
        missing = {'dropout': jnp.zeros_like(rates[0])} if some else {}
        trees = [{**missing, **tree} for tree in trees]
        inside = {name: _with_rates([tree[name] for tree in trees]) for name in trees[0]}
        return [{name: each[i] for name, each in inside.items()} for i in range(len(trees))]
    if isinstance(first, tuple) and first:
        parts = zip(*(_with_rates(part) for part in zip(*trees, strict=True)), strict=True)
        return [jax.tree.unflatten(_shallow(first), part) for part in parts]
    return list(trees)


def _check_names(trees: Sequence[dict[str, Any]]) -> None:
    names = [set(tree) - {'dropout'} for tree in trees]
    for each in names:
        if each != names[0]:
            raise ValueError(
                f'runs of one program need the same numbers, found {sorted(map(str, names[0]))} '
                f'and {sorted(map(str, each))}'
            )


def _shallow(node: Any) -> Any:
    return jax.tree.structure(node, is_leaf=lambda each: each is not node)


def _ids(column: Sequence[jax.Array]) -> tuple[int, ...]:
    return tuple(map(id, column))


def _equal(one: jax.Array, other: jax.Array) -> bool:
    return one.shape == other.shape and bool(jnp.array_equal(one, other))


def unstack(stacked: Any, index: int, like: Any) -> Any:
    """The tree of one run out of `stack`, with the shapes of `like`.

    Example:
        >>> both = stack([jnp.ones(2), jnp.ones(1)])
        >>> unstack(both, 1, jax.ShapeDtypeStruct((1,), jnp.float32)).tolist()
        [1.0]
    """
    return jax.tree.map(
        lambda leaf, own: leaf[index][tuple(slice(size) for size in own.shape)], stacked, like
    )


def _stack(leaves: Sequence[jax.Array]) -> jax.Array:
    if len({leaf.shape for leaf in leaves}) > 1:
        shape = np.max([leaf.shape for leaf in leaves], axis=0)
        leaves = [
            jnp.pad(leaf, [(0, most - size) for most, size in zip(shape, leaf.shape, strict=True)])
            for leaf in leaves
        ]
    return jnp.stack(leaves)
