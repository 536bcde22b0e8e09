"""The sharding of activations on a mesh."""

import jax
from jax.sharding import AxisType, PartitionSpec

# Axes of a mesh over which a batch is split, by their names in `peftjax.make_mesh`.
_BATCH = ('data', 'fsdp')


def along_batch(x: jax.Array) -> jax.Array:
    """`x` [B, ...], split by examples over the current mesh; `x` itself without a mesh.

    Otherwise the partitioner may split features, as the weights are split along them, and then
    communicates activations although the weights are smaller. The mesh is that of `jax.set_mesh`.
    `x` is split over its axes `data` and `fsdp`, unless a `shard_map` around this call has taken
    them.

    Example:
        >>> along_batch(jax.numpy.ones((2, 3))).shape
        (2, 3)
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(name for name in _BATCH if kinds.get(name) == AxisType.Auto)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x
