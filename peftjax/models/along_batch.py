"""How activations lie on a mesh."""

import jax
from jax.sharding import AxisType, PartitionSpec

# Axes of a mesh over which a batch is split, by their names in `peftjax.make_mesh`.
_BATCH = ('data', 'fsdp')


def along_batch(x: jax.Array) -> jax.Array:
    """`x` [B, ...], split by examples where a mesh is in force; `x` as it is where none is.

    Without it the partitioner may split features, since the weights are split along them, and send
    activations where weights are smaller. The mesh is the one of `jax.set_mesh`; its axes `data`
    and `fsdp` count, unless a `shard_map` around this call has taken them.

    Example:
        >>> along_batch(jax.numpy.ones((2, 3))).shape
        (2, 3)
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(name for name in _BATCH if kinds.get(name) == AxisType.Auto)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x
