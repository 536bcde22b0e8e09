"""AdapterHub's LoRA, and LoRA behind gates, in and out."""

from collections.abc import Mapping
from typing import Any

from peftjax.core.transform import About
from peftjax.interop.adapterhub.file import Arrays, File, Part, Written
from peftjax.interop.adapterhub.lora_config import BLANK, chosen, matrices_of
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, literal
from peftjax.methods.gated import gated
from peftjax.methods.lora import lora


def factors(file: File, found: Found) -> tuple[dict[str, Arrays], int, float]:
    """`a` and `b` of each module, as ours stand, rank and alpha."""
    config = file.config
    rank, alpha, suffix = config.whole('r'), config.above_zero('alpha'), f'.loras.{file.name}.lora_'
    wrong = [
        n
        for n, value in file.tensors.items()
        if suffix in n and (value.ndim != 2 or rank not in value.shape)
    ]
    if wrong:
        raise CheckpointError(f'{file.where}: {wrong[:4]} are no factors of rank {rank}')
    modules = found.take({'a': f'{suffix}A', 'b': f'{suffix}B'})
    if not modules:
        raise CheckpointError(f'{file.where} holds no LoRA called {file.name!r}')
    turned = {module: {n: v.T for n, v in each.items()} for module, each in modules.items()}
    return turned, rank, alpha


def read_lora(file: File, found: Found, gates: bool) -> Part:
    """LoRA, or with `gates` LoRA behind them."""
    turned, rank, alpha = factors(file, found)
    entries = found.entries('lora', turned)
    if not gates:
        return lora(rank=rank, alpha=alpha, targets=literal(entries)), entries
    # The gate stands in place of alpha / r.
    inner = lora(rank=rank, alpha=rank, targets=literal(entries))
    values = _of_each(file, found, turned, {n: f'.gate.{n}' for n in ('weight', 'bias')})
    return gated(inner), {'inner': entries, 'gates': found.entries('gated', values)}


def _of_each(
    file: File, found: Found, modules: Mapping[str, Any], endings: Mapping[str, str]
) -> dict[str, Arrays]:
    """What a file has once for each of the modules, in a leading axis of one."""
    taken = found.take({ours: f'.loras.{file.name}{each}' for ours, each in endings.items()})
    if set(taken) != set(modules):
        raise CheckpointError(
            f'{file.where} has {sorted(endings.values())} at {len(taken)} of {len(modules)} modules'
        )
    return {
        module: {each: file.first(value, module) for each, value in arrays.items()}
        for module, arrays in taken.items()
    }


def write_lora(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    arguments = about.arguments
    for field in ('rslora', 'rank_pattern', 'alpha_pattern'):
        if arguments[field]:
            raise ValueError(f'AdapterHub has one rank and alpha / rank for all: no {field}')
    rank = arguments['rank']
    alpha = rank if arguments['alpha'] is None else arguments['alpha']
    tensors = {}
    for module, arrays in matrices_of(hub, adapter):
        tensors[f'{module}.loras.{name}.lora_A'] = arrays['a'].T
        tensors[f'{module}.loras.{name}.lora_B'] = arrays['b'].T
    return tensors, BLANK | chosen(hub, adapter) | {'r': rank, 'alpha': alpha}


def write_gated(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    inner = about.arguments['transform'].about
    if (
        inner is None
        or inner.name != 'lora'
        or inner.arguments['alpha'] not in (None, inner.arguments['rank'])
    ):
        raise ValueError(
            'AdapterHub gates LoRA alone, and in place of alpha / rank; leave alpha out'
        )
    tensors, config = write_lora(hub, inner, adapter['inner'], name)
    for module, arrays in matrices_of(hub, adapter['gates']):
        for each, value in arrays.items():
            tensors[f'{module}.loras.{name}.gate.{each}'] = value[None]
    return tensors, config | {'use_gating': True}
