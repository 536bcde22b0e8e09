"""Devices by their data sheets, and meshes of devices that are elsewhere."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, Mesh

from peftjax.core.sharding import DATA, FSDP, TENSOR, make_mesh
from peftjax.plan.gpus import GPUS, gpu_devices, is_gpus


class Machine(NamedTuple):
    """One device, by its maker's data sheet.

    Attributes:
        flops: floating-point operations per second, in bfloat16 without sparsity.
        memory: bytes that a program may use; for a GPU, those that its driver reports.
        bandwidth: of the memory, in bytes per second.
    """

    flops: float
    memory: float
    bandwidth: float


MACHINES: Mapping[str, Machine] = {
    'v4': Machine(275e12, 32 * 2**30, 1228e9),
    'v5e': Machine(197e12, 16 * 2**30, 819e9),
    'v5p': Machine(459e12, 95 * 2**30, 2765e9),
    'v6e': Machine(918e12, 32 * 2**30, 1640e9),
    'A100': Machine(312e12, GPUS['A100'].memory, 2039e9),
    'H100': Machine(989e12, GPUS['H100'].memory, 3350e9),
    'H200': Machine(989e12, GPUS['H200'].memory, 4800e9),
    'B200': Machine(2250e12, GPUS['B200'].memory, 8000e9),
}
"""Devices that are known by name. GPUs are the SXM modules; the A100 is the one with 80 GB."""


# Their names by `jax.Device.device_kind`.
_KINDS = {
    **{'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5e': 'v5e', 'TPU v5p': 'v5p', 'TPU v5': 'v5p'},
    **{'TPU v6 lite': 'v6e', 'TPU v6e': 'v6e'},
    **{gpu.name: name for name, gpu in GPUS.items()},
}


def machine_here() -> Machine | None:
    """The first device of this process, if it is one of `MACHINES`.

    Example:
        >>> machine_here() is None or machine_here() in MACHINES.values()
        True
    """
    return machine_of(jax.devices()[0].device_kind)


def machine_of(kind: str) -> Machine | None:
    """The data sheet of a device by its `jax.Device.device_kind`, if it is one of `MACHINES`.

    Example:
        >>> machine_of('NVIDIA H200') == MACHINES['H200'], machine_of('cpu')
        (True, None)
    """
    name = _KINDS.get(kind)
    return None if name is None else MACHINES[name]


def mesh_for(
    topology: str | None = None, *, data: int = 1, fsdp: int = 1, tensor: int = 1
) -> Mesh | AbstractMesh | None:
    """The mesh to plan for: without devices, of TPUs or GPUs that are elsewhere, or of those here.

    Args:
        topology: None for axes without devices; a slice that the TPU compiler knows, 'v5e:2x4',
            for which `libtpu` must be installed; GPUs of one host, 'H100:8', or of several,
            'H100:2x8', for which the extra `gpu-plan` must be installed; 'here' for the devices of
            this machine.
        data, fsdp, tensor: see `peftjax.make_mesh`. If all are 1, the topologies None and 'here'
            mean one device without a mesh, and a slice or GPUs are all on `fsdp`.

    Raises:
        ValueError: an unknown topology, a topology without a compiler, or axes whose product is not
            the number of its devices.

    Example:
        >>> mesh_for(fsdp=8).size
        8
    """
    axes = {DATA: data, FSDP: fsdp, TENSOR: tensor}
    alone = set(axes.values()) == {1}
    if topology in (None, 'here'):
        if alone:
            return None
        if topology == 'here':
            return make_mesh(data, fsdp, tensor)
        return AbstractMesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * 3)
    devices = gpu_devices(topology) if is_gpus(topology) else _tpu_devices(topology)
    if alone:
        fsdp = len(devices)
    return make_mesh(data, fsdp, tensor, devices=devices)


def _tpu_devices(topology: str) -> Sequence[Any]:
    # Without these two, the TPU library asks a metadata server that is not there.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    # A compiler takes no chip, so other processes may use the chips, or compile too.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
    except Exception as error:
        raise ValueError(
            f'the TPU compiler has no topology {topology!r}, or is not installed (pip install '
            f"'libtpu'); the only GPUs known are {', '.join(GPUS)}: "
            f'{str(error).splitlines()[0][:200]}'
        ) from error
