"""Many runs on one base in one program.

Runs that differ in numbers alone (rates, decays, alphas, dropout rates, seeds) trace to one
program. The numbers of a method are in `frozen.own`, an argument like the adapter: `share` stacks
those that differ. The numbers of an optimiser are constants of the program; they become arguments
with the runs in front, and the program is mapped over them: whatever the method, whatever the
optimiser, each run computes what it would alone. Ranks are lengths and no numbers; an adapter of a
lesser rank is padded with zeros.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.transform import About, PeftTransform
from peftjax.training.programs import Program, vary


class Vectorized(NamedTuple):
    """Several programs as one.

    Attributes:
        call: `call(numbers, *args)`, pure and not compiled. Arguments that `in_axes` maps, and all
            results, carry the runs in front.
        numbers: what differs between the runs, stacked: a pytree.
        widest: which of the programs has the largest shapes, and does the work of all.
    """

    call: Callable[..., Any]
    numbers: Any
    widest: int

    def at(self, before: Program, after: Program, in_axes: Sequence[Any]) -> 'Vectorized':
        """The same for arguments of other shapes, such as shorter rows, from one more trace.

        Args:
            before, after: the widest program, and the same function traced on the other shapes.
            in_axes: as for `vectorize`.

        Raises:
            ValueError: the program is another one there, or a number that differs between the
                runs depends on the shapes: trace all of them, and `vectorize` those.
        """
        if before.loose != after.loose:
            raise ValueError(f'not one program: {_difference(after.loose, before.loose)}')
        for index in self.numbers['numbers']:
            if not np.array_equal(before.numbers[index], after.numbers[index]):
                raise ValueError('a number that differs between the runs depends on the shapes')
        call = _mapped(after, self.numbers['limits'], in_axes)
        return Vectorized(call, self.numbers, self.widest)


def vectorize(programs: Sequence[Program], in_axes: Sequence[Any]) -> Vectorized:
    r"""Runs of one program, each with numbers of its own, as one program over all of them.

    For programs :math:`f(c_k, x)` with constants :math:`c_k`, gives
    :math:`F(c, x)_k = f(c_k, x_k)`. What lies beyond a run's own shapes is zero in arguments made
    by `stack`, and set to zero in results.

    Args:
        programs: of `trace`, one a run, of equal `program_key`.
        in_axes: as in `jax.vmap`, for each argument: 0 where the runs have their own, None where
            they share one.

    Raises:
        ValueError: programs that differ in more than numbers, with the first difference; or in
            shapes of which none is the largest throughout.

    Example:
        >>> trace = peftjax.training.trace
        >>> steps = [trace(lambda x, rate=rate: x - rate * x, 1.0) for rate in (0.1, 0.5)]
        >>> together = vectorize(steps, in_axes=(0,))
        >>> jax.jit(together.call)(together.numbers, jnp.ones(2)).tolist()
        [0.8999999761581421, 0.5]
    """
    place = _widest([each.shapes for each in programs])
    widest = programs[place]
    for each in programs:
        # Only where shapes differ may the text of shapes.
        mine, theirs = (
            (each.exact, widest.exact)
            if each.shapes == widest.shapes
            else (each.loose, widest.loose)
        )
        if mine != theirs:
            raise ValueError(f'not one program: {_difference(mine, theirs)}')
    limits = {
        place: jnp.asarray(shapes, jnp.int32)
        for place, shapes in enumerate(zip(*(each.results for each in programs), strict=True))
        if len(set(shapes)) > 1
    }
    numbers = {'numbers': vary(programs), 'limits': limits}
    return Vectorized(_mapped(widest, limits, in_axes), numbers, place)


def _mapped(program: Program, limits: Collection[int], in_axes: Sequence[Any]) -> Any:
    """The program over runs. Which numbers differ is a part of it, what they are is not."""

    def one(own: Any, *args: Any) -> Any:
        numbers = [own['numbers'].get(i, value) for i, value in enumerate(program.numbers)]
        leaves, tree = jax.tree.flatten(program(numbers, *args))
        for place in limits:
            inside = _within(leaves[place], own['limits'][place])
            leaves[place] = jnp.where(inside, leaves[place], 0)
        return jax.tree.unflatten(tree, leaves)

    return jax.vmap(one, in_axes=(0, *in_axes))


def program_key(program: Program, transform: PeftTransform) -> Hashable:
    """Equal for runs that `vectorize` takes together.

    Shapes may differ where each method of the chain says of the argument that makes them that zeros
    beyond it change nothing (`peftjax.core.transform.padded_by`).

    Example:
        >>> model, key = peftjax.testing.tiny_mlp(), jax.random.key(0)
        >>> keys = set()
        >>> for rank, alpha in ((1, 2.0), (2, 4.0)):
        ...     tx = peftjax.lora(rank=rank, alpha=alpha, targets=r'hidden')
        ...     predict = peftjax.adapt(model, tx)
        ...     x = jnp.ones((1, 4))
        ...     adapter, frozen = tx.init(key, model)
        ...     found = peftjax.training.trace(predict, adapter, frozen, x)
        ...     keys.add(program_key(found, tx))
        >>> len(keys)
        1
    """
    members = [about for about in _members(transform) if about is not None]
    told = len(members) == len(_members(transform))
    if not told or not any(about.padded_by for about in members):
        return program.exact
    fixed = tuple(
        (about.name, name, str(value))
        for about in members
        for name, value in sorted(about.arguments.items())
        if name != about.padded_by and name not in about.floats
    )
    return program.loose, fixed


def stack(runs: Sequence[Any]) -> Any:
    """Trees of several runs as one, the runs in front, zeros where one has a larger shape.

    Example:
        >>> stack([{'a': jnp.ones(2)}, {'a': jnp.ones(1)}])['a'].tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    return jax.tree.map(lambda *leaves: _stack(leaves), *runs)


def share(trees: Sequence[Any]) -> tuple[Any, Any]:
    """Trees of several runs, each leaf once where all have the same values, and else stacked.

    Leaves that are one array in each of the trees are one array in the result.

    Returns:
        The tree, and of the same structure the axes for `vectorize`: None or 0.

    Example:
        >>> mlp, key = peftjax.testing.tiny_mlp(), jax.random.key(0)
        >>> methods = [peftjax.lora(rank=2, alpha=each, targets=r'hidden') for each in (2, 4)]
        >>> frozen, axes = share([tx.init(key, mlp)[1] for tx in methods])
        >>> frozen.own['hidden/kernel']['scale'].tolist(), axes.own['hidden/kernel']['scale']
        ([1.0, 2.0], 0)
        >>> frozen.params['hidden']['kernel'].shape, axes.params['hidden']['kernel']
        ((4, 8), None)
    """
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


def _ids(column: Sequence[jax.Array]) -> tuple[int, ...]:
    return tuple(map(id, column))


def _equal(one: jax.Array, other: jax.Array) -> bool:
    return one.shape == other.shape and bool(jnp.array_equal(one, other))


def row(stacked: Any, index: int, like: Any) -> Any:
    """A run's own tree out of `stack`, with the shapes of `like`.

    Example:
        >>> both = stack([jnp.ones(2), jnp.ones(1)])
        >>> row(both, 1, jax.ShapeDtypeStruct((1,), jnp.float32)).tolist()
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


def _within(leaf: jax.Array, limit: jax.Array) -> jax.Array:
    inside = jnp.ones((), bool)
    for axis in range(leaf.ndim):
        inside = inside & (jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis) < limit[axis])
    return inside


def _widest(shapes: Sequence[tuple[tuple[int, ...], ...]]) -> int:
    if len({tuple(map(len, each)) for each in shapes}) > 1:
        raise ValueError('not one program: the arguments have other leaves')
    sizes = [np.concatenate([*each, ()]).astype(int) for each in shapes]
    most = np.max(sizes, axis=0)
    for index, each in enumerate(sizes):
        if np.array_equal(each, most):
            return index
    raise ValueError('no run has the largest shape throughout, so that none can hold the others')


def _difference(one: str, other: str) -> str:
    pairs = zip(one.splitlines(), other.splitlines(), strict=False)
    return next((f'{a!r} here, {b!r} there' for a, b in pairs if a != b), 'one of them goes on')


def _members(transform: PeftTransform) -> list[About | None]:
    about = transform.about
    if about is None or about.name not in ('chain', 'named_chain'):
        return [about]
    members = about.arguments['transforms']
    parts = members.values() if about.name == 'named_chain' else members
    return [each for part in parts for each in _members(part)]
