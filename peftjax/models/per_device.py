"""Attention that each device of a mesh computes for its own examples and heads."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from peftjax.core.masks import Mask

_EXAMPLES, _HEADS = ('data', 'fsdp'), ('tensor',)


def per_device(
    function: Callable[..., Any],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *slope: jax.Array,
) -> Any:
    """`function` of the operands: attention, or with a `slope` its three gradients.

    On a mesh it is called on each device's part, since the compiler cannot split a custom kernel.
    Examples are split over the axes `data` and `fsdp`, heads over `tensor` if it divides the number
    of key heads. The mesh is that of `jax.set_mesh`, without axes that a `shard_map` around this
    call has taken.
    """
    examples, tensor = _axes(_EXAMPLES), _axes(_HEADS)
    if not examples and not tensor:
        return function(query, key, value, mask, *slope)
    # If `tensor` does not divide the heads, every device along it computes all of them.
    heads = () if key.shape[2] % math.prod(tensor.values()) else tuple(tensor)
    by_head = PartitionSpec(tuple(examples), None, heads)
    by_example = PartitionSpec(tuple(examples))
    masks = jax.tree.map(lambda x: by_example if len(x) == len(query) else PartitionSpec(), mask)
    return jax.shard_map(
        function,
        in_specs=(by_head, by_head, by_head, masks, *(by_head for _ in slope)),
        out_specs=(by_head, by_head, by_head) if slope else by_head,
        axis_names={*examples, *tensor},
        check_vma=False,
    )(query, key, value, mask, *slope)


def splits_evenly(examples: int) -> bool:
    """Whether each device of the current mesh gets equally many examples; True without a mesh."""
    return examples % math.prod(_axes(_EXAMPLES).values()) == 0


def _axes(names: tuple[str, ...]) -> dict[str, int]:
    """Axes of the current mesh over which the compiler splits arrays, and their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return {name: mesh.shape[name] for name in names if kinds.get(name) == AxisType.Auto}
