"""How the leaves of a model, an adapter and an optimiser are split over a mesh."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from peftjax.core import paths
from peftjax.core.frozen import Frozen
from peftjax.core.model import Model
from peftjax.core.quantized import QuantizedArray
from peftjax.core.roles import Roles
from peftjax.core.sites import WeightSite

DATA, FSDP, TENSOR = 'data', 'fsdp', 'tensor'


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of devices with the three axes that `shardings` uses.

    Args:
      data: groups that hold the whole base, each with its share of the batch.
      fsdp: devices that share one base between them, each with its share of the batch too.
      tensor: devices that share every product; their links should be the fastest.
      devices: the devices to use; all devices by default. Their number is the product of the three.

    Raises:
      ValueError: another number of devices.

    >>> dict(make_mesh(data=2, fsdp=4).shape)
    {'data': 2, 'fsdp': 4, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else devices
    sizes = {DATA: data, FSDP: fsdp, TENSOR: tensor}
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f'a mesh of {" x ".join(f"{name} {size}" for name, size in sizes.items())} has '
            f'{data * fsdp * tensor} devices, but there are {len(devices)}: choose sizes whose '
            f'product is {len(devices)}, or pass devices='
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of a batch: its first axis is split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def shardings(model: Model, mesh: Mesh | AbstractMesh) -> Any:
    """The sharding of each leaf of the base: a tree of `NamedSharding` like `model.params`.

    A matrix of the base is split twice. The `tensor` axis shards so that each sublayer needs one
    all-reduce (Megatron): the inputs of the last matrix before a residual branch ends, the outputs
    of the others. `fsdp` shards the other axis (of a lookup table its rows). Axes not divisible by
    the mesh size are replicated; `fsdp` then falls back to another divisible axis. A convolution is
    split by its outputs alone. Scanned layers keep their stack whole, so that one layer is gathered
    at a time, never the whole base. Vectors (biases, norms) are on every device.

    Args:
      model: params may be abstract.
      mesh: see `make_mesh`; or one without devices, for planning.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> mesh = make_mesh(fsdp=4, tensor=2)
    >>> tuple(shardings(mlp, mesh)['hidden']['kernel'].spec)
    ('fsdp', 'tensor')

    Source: for `tensor`, Shoeybi et al. 2019 (arXiv:1909.08053), section 3; for `fsdp`, Rajbhandari
    et al. 2019 (arXiv:1910.02054), stage 3.
    """
    last = _last_of_branches(model)
    places = {
        path: _place(leaf, _spec(model.sites.weights[path], path in last, mesh), mesh)
        for path, leaf in paths.flatten(model.params).items()
    }
    return paths.replace(model.params, places)


def state_shardings(state: Any, model: Model, mesh: Mesh | AbstractMesh) -> Any:
    """The sharding of each leaf of an adapter, or of a training state that holds one.

    A leaf under the path of a weight has the weight's sharding if it has its shape (`select`,
    `full`). Otherwise each axis inherits the sharding of the weight's input or output axis with the
    same length (`a` of LoRA that of the inputs, `b` that of the outputs). The optimiser's state
    follows its leaf. Everything else is small and on every device.

    Args:
      state: any tree of arrays or `ShapeDtypeStruct`.
      model, mesh: as for `shardings`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> adapter, frozen = peftjax.lora(rank=2, targets='hidden').init(jax.random.key(0), mlp)
    >>> placed = state_shardings(adapter, mlp, make_mesh(fsdp=4, tensor=2))
    >>> tuple(placed['hidden/kernel']['a'].spec)
    ('fsdp', None)
    """
    last = _last_of_branches(model)

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = [str(getattr(key, 'key', getattr(key, 'name', key))) for key in path]
        sites = [model.sites.weights[name] for name in names if name in model.sites.weights]
        if not sites:
            return NamedSharding(mesh, PartitionSpec())
        spec = _spec(sites[-1], sites[-1].path in last, mesh)
        return NamedSharding(mesh, _inherited(leaf.shape, sites[-1], spec, mesh))

    return jax.tree_util.tree_map_with_path(place, state)


def frozen_shardings(frozen: Frozen, model: Model, mesh: Mesh | AbstractMesh) -> Frozen:
    """The sharding of each leaf of `frozen`, which `init` gave beside the adapter.

    Parameters are split as in `shardings`, and a method's own numbers as in `state_shardings`.

    Args:
      frozen: of arrays or `ShapeDtypeStruct`.
      model, mesh: as for `shardings`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> adapter, frozen = peftjax.lora(rank=2, targets='hidden').init(jax.random.key(0), mlp)
    >>> placed = frozen_shardings(frozen, mlp, make_mesh(fsdp=4, tensor=2))
    >>> tuple(placed.params['hidden']['kernel'].spec)
    ('fsdp', 'tensor')
    """
    params = shardings(model.replace(params=frozen.params), mesh)
    return Frozen(params, state_shardings(frozen.own, model, mesh))


def _last_of_branches(model: Model) -> frozenset[str]:
    roles = model.roles or Roles()
    modules = model.sites.modules.items()
    return frozenset(site.after for path, site in modules if roles.matches('residual_end', path))


def _spec(site: WeightSite, ends: bool, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    layout = site.layout
    if layout is None or site.vector:
        return PartitionSpec()
    first, second = layout.columns, layout.rows
    if 'conv' in site.uses:
        # Split along the batch's axis, inputs of a strided convolution had wrong gradients: XLA's
        # partitioner in jax 0.10.2, on CPU. `test_sharded_families.py` holds Whisper to one
        # device's.
        second = ()
    elif ends:
        first, second = second, first
    chosen: dict[int, str] = {}
    for name, axes in ((TENSOR, first), (FSDP, (*second, *first))):
        size = mesh.shape[name]
        fitting = [axis for axis in axes if axis not in chosen and site.shape[axis] % size == 0]
        if size > 1 and fitting:
            chosen[fitting[0]] = name
    return PartitionSpec(*(chosen.get(axis) for axis in range(len(site.shape))))


def _place(leaf: Any, spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> Any:
    if not isinstance(leaf, QuantizedArray):
        return NamedSharding(mesh, spec)
    # Codes and scales are [*stack, outputs, inputs]: split like the leaf, if that is possible.
    layout, depth = leaf.layout, len(leaf.stack)
    sides = (layout.rows, layout.columns) if layout.lookup else (layout.columns, layout.rows)
    names = [spec[side[0]] if len(spec) > side[0] else None for side in sides]

    def place(part: Any) -> NamedSharding:
        if len(part.shape) != depth + 2:
            return NamedSharding(mesh, PartitionSpec())
        fitting = (
            name if name is not None and size % mesh.shape[name] == 0 else None
            for name, size in zip(names, part.shape[depth:], strict=True)
        )
        return NamedSharding(mesh, PartitionSpec(*[None] * depth, *fitting))

    return jax.tree.map(place, leaf)


def _inherited(
    shape: tuple[int, ...], site: WeightSite, spec: PartitionSpec, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    layout = site.layout
    if shape == site.shape or layout is None:
        return spec if shape == site.shape else PartitionSpec()
    sides = {
        side: (size, spec[axes[0]])
        for side, size, axes in (
            ('in', layout.inputs, layout.rows),
            ('out', layout.outputs, layout.columns),
        )
        if len(axes) == 1 and len(spec) > axes[0]
    }
    first = min(len(layout.stack), len(shape))  # A number is shared by all layers.
    chosen: list[str | None] = [None] * first
    for number in range(first, len(shape)):
        # Of a square weight, only the first of several axes can be about its inputs.
        order = ('in', 'out') if number == first < len(shape) - 1 else ('out', 'in')
        fitting = [sides[side][1] for side in order if sides.get(side, (0,))[0] == shape[number]]
        name = fitting[0] if fitting else None
        chosen.append(name if name not in chosen else None)
    return PartitionSpec(*chosen)
