"""Tags: marks in a traced program that say where a named module was called.

A tag is JAX's own `checkpoint_name`, an identity that keeps a string in the jaxpr.
"""

import inspect
import re
import weakref
from collections.abc import MutableMapping
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from peftjax.binding import jaxprs, operations

_PATTERN = re.compile(r'peftjax:(in|out):(\d+):(\d+):(\w*)(?:#(\d+))?:(.*)')


class Tag(NamedTuple):
    """One mark.

    Attributes:
      point: `'in'` for an argument of the call, `'out'` for its output.
      number: of the argument.
      rank: number of axes of the array as the module saw it.
      kind: name of the module's class.
      path: of the module.
      core: number of the call in `peftjax.binding.attention`, of an attention core's output.
    """

    point: str
    number: int
    rank: int
    kind: str
    path: str
    core: int | None = None


def mark_inputs(
    signature: inspect.Signature, args: Any, kwargs: Any, kind: str, path: str
) -> tuple[Any, Any]:
    """`args` and `kwargs` with every array marked as an argument of a call of `path`.

    Arrays are numbered in the order of the signature, whether they come by place or by name.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    places = jax.tree.unflatten(structure, range(len(leaves)))
    bound = signature.bind(*places[0], **places[1])
    order = jax.tree.leaves(list(bound.arguments.values()))
    number = {place: number for number, place in enumerate(order)}
    marked = [_mark(leaf, f'in:{number[i]}', kind, path) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, marked)


def mark_arrays(arrays: Any, kind: str, path: str) -> None:
    """Marks arrays as the arguments of a call of `path`, in their order."""
    for number, array in enumerate(arrays):
        _mark(array, f'in:{number}', kind, path)


def mark_output(output: Any, kind: str, path: str, core: int | None = None) -> Any:
    """`output` with its first array marked as the result of `path`, and of the attention `core`."""
    kind = kind if core is None else f'{kind}#{core}'
    leaves, structure = jax.tree.flatten(output)
    first = next((i for i, leaf in enumerate(leaves) if _is_float(leaf)), None)
    if first is not None:
        leaves[first] = _mark(leaves[first], 'out:0', kind, path)
    return jax.tree.unflatten(structure, leaves)


def read(operation: operations.Operation | None) -> Tag | None:
    """The tag of an operation; None if the operation is not a tag."""
    match = _PATTERN.fullmatch(operation.name) if isinstance(operation, operations.Name) else None
    if match is None:
        return None
    point, index, rank, kind, core, path = match.groups()
    return Tag(point, int(index), int(rank), kind, path, None if core is None else int(core))


def below(eqn: Any) -> list[Tag]:
    """Tags of module outputs in the jaxprs of an equation, at any depth."""
    return [tag for jaxpr in jaxprs.programs_in(eqn) for tag in _within(jaxpr)]


def _within(jaxpr: Any) -> list[Tag]:
    """Tags of module outputs in a jaxpr. Each jaxpr is read only once."""
    if jaxpr not in _KNOWN:
        found = []
        for eqn in jaxpr.eqns:
            tag = read(jaxprs.read(eqn))
            found += [tag] if tag and tag.point == 'out' else below(eqn)
        _KNOWN[jaxpr] = found
    return _KNOWN[jaxpr]


_KNOWN: MutableMapping[Any, list[Tag]] = weakref.WeakKeyDictionary()


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)


def _mark(leaf: Any, place: str, kind: str, path: str) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    return checkpoint_name(leaf, f'peftjax:{place}:{leaf.ndim}:{kind}:{path}')
