"""The GPUs that XLA can compile for without having one, by the numbers that its compiler needs."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.experimental import topologies


class Gpu(NamedTuple):
    """One kind of GPU, as its driver describes it.

    Attributes:
        name: its name by `jax.Device.device_kind`.
        capability: the major number of its compute capability; the minor number is 0.
        multiprocessors: how many it has.
        lanes: float32 operations that a multiprocessor starts in a cycle.
        shared: bytes of shared memory of a multiprocessor.
        clock: in GHz.
        cache: bytes of the second-level cache.
        memory: bytes that the driver reports.
        bandwidth: of the memory, in bytes per second.
    """

    name: str
    capability: int
    multiprocessors: int
    lanes: int
    shared: int
    clock: float
    cache: int
    memory: int
    bandwidth: int


_H100 = Gpu(
    'NVIDIA H100 80GB HBM3',
    capability=9,
    multiprocessors=132,
    lanes=128,
    shared=228 * 2**10,
    clock=1.98,
    cache=50 * 2**20,
    memory=84942979072,
    bandwidth=3352320000000,
)

GPUS: Mapping[str, Gpu] = {
    'A100': Gpu(
        'NVIDIA A100-SXM4-80GB',
        capability=8,
        multiprocessors=108,
        lanes=64,
        shared=164 * 2**10,
        clock=1.41,
        cache=40 * 2**20,
        memory=85100068864,
        bandwidth=2039040000000,
    ),
    'H100': _H100,
    'H200': _H100._replace(name='NVIDIA H200', memory=151397597184, bandwidth=4800000000000),
    'B200': Gpu(
        'NVIDIA B200',
        capability=10,
        multiprocessors=148,
        lanes=128,
        shared=228 * 2**10,
        clock=1.965,
        cache=132644864,
        memory=191514411008,
        bandwidth=7672320000000,
    ),
}
"""By the names in `peftjax.plan.MACHINES`. All are SXM modules; the A100 is the one with 80 GB."""

# The number of hosts, 1 by default, and the GPUs of each host: 'H100:8' and 'H100:2x8'.
_TOPOLOGY = re.compile(r'(?P<name>[^:]+):(?:(?P<hosts>[1-9]\d*)x)?(?P<each>[1-9]\d*)')
# These hold for every NVIDIA GPU since 2016.
_LIMITS = """
    threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
    block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
    thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
    registers_per_core_limit: 65536  registers_per_block_limit: 65536
    shared_memory_per_block: 49152
"""


def is_gpus(topology: str) -> bool:
    """Whether a topology starts with the name of a GPU.

    Example:
        >>> is_gpus('H100:8'), is_gpus('v5e:2x4')
        (True, False)
    """
    return topology.partition(':')[0] in GPUS


def gpu_devices(topology: str) -> Sequence[Any]:
    """The devices of a topology of GPUs, to compile for and not to run on.

    Args:
        topology: 'H100:8' for eight of one host, 'H100:2x8' for two hosts of eight.

    Raises:
        ValueError: a topology of another form, or no compiler for GPUs.
    """
    match = _TOPOLOGY.fullmatch(topology)
    if match is None:
        raise ValueError(
            f'{topology!r} is no topology of GPUs; write for example H100:8, or H100:2x8 for two '
            'hosts of eight'
        )
    shape = f'1x{match["hosts"] or 1}x{match["each"]}'
    # Without it, JAX refuses to compile where there are no CUDA libraries to run programs with.
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
    try:
        found = topologies.get_topology_desc(
            platform='cuda', target_config=_description(GPUS[match['name']]), topology=shape
        )
    except Exception as error:  # The compiler's own errors share no other class.
        raise ValueError(
            f"no compiler for GPUs takes {topology!r}: pip install 'peftjax[gpu-plan]', and in a "
            'process that uses JAX beforehand set JAX_PLATFORMS=cpu: '
            f'{str(error).splitlines()[0][:200]}'
        ) from error
    return found.devices


def _description(gpu: Gpu) -> str:
    """XLA's `GpuTargetConfigProto` as text, with the oldest libraries that JAX 0.8 accepts."""
    features = 'ACCELERATED_FEATURES' if gpu.capability >= 9 else 'NONE'
    return f"""
    gpu_device_info {{{_LIMITS}
    core_count: {gpu.multiprocessors}  fpus_per_core: {gpu.lanes}  clock_rate_ghz: {gpu.clock}
    shared_memory_per_core: {gpu.shared}  shared_memory_per_block_optin: {gpu.shared - 1024}
    l2_cache_size: {gpu.cache}  device_memory_size: {gpu.memory}
    memory_bandwidth: {gpu.bandwidth}
    cuda_compute_capability {{ major: {gpu.capability}  feature_extension: {features} }}
    }}
    platform_name: "CUDA"  dnn_version_info {{ major: 9  minor: 8 }}
    runtime_version {{ major: 12  minor: 8  patch: 0 }}
    device_description_str: "{gpu.name}"
    """
