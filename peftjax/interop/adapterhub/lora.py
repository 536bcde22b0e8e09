"""AdapterHub's LoRA, with and without gates, in and out."""

import re
from collections.abc import Mapping
from typing import Any

from peftjax.core.transform import About, PeftTransform
from peftjax.interop.adapterhub.file import Arrays, File, Part, Written
from peftjax.interop.adapterhub.lora_config import BLANK, chosen, matrices_of
from peftjax.interop.adapterhub.merged import is_merged, joined, one_of, parted
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, literal
from peftjax.methods.gated import gated
from peftjax.methods.low_rank.lora import lora
from peftjax.methods.low_rank.low_rank import LowRank


def factors(file: File, found: Found) -> tuple[dict[str, Arrays], int, float]:
    """`a` and `b` of each module in our order of axes, the rank and alpha.

    A matrix of query, key and value has the rank times the number of its adapted letters.
    """
    config = file.config
    rank, alpha, suffix = config.whole('r'), config.above_zero('alpha'), f'.loras.{file.name}.lora_'
    wrong = [
        n
        for n, value in file.tensors.items()
        if suffix in n
        and (value.ndim != 2 or not any(size % rank == 0 and size for size in value.shape))
    ]
    if wrong:
        raise CheckpointError(f'{file.where}: {wrong[:4]} are no factors of rank {rank}')
    modules = found.take({'a': f'{suffix}A', 'b': f'{suffix}B'})
    if not modules:
        raise CheckpointError(f'{file.where} holds no LoRA called {file.name!r}')
    turned = {
        module: joined(file, module, each, rank)
        if is_merged(file.hub, module)
        else {n: v.T for n, v in each.items()}
        for module, each in modules.items()
    }
    return turned, rank, alpha


def read_lora(file: File, found: Found, gates: bool) -> Part:
    """LoRA, or with `gates` gated LoRA."""
    turned, rank, alpha = factors(file, found)
    entries = found.entries('lora', turned)
    if not gates:
        return _scaled(entries, rank, alpha), entries
    if any(is_merged(file.hub, module) for module in turned):
        raise CheckpointError(
            f'{file.where} has a gate for each of query, key and value, which are one matrix here'
        )
    # The gate replaces alpha / r.
    inner = lora(rank=rank, alpha=rank, targets=literal(entries))
    values = _of_each(file, found, turned, {n: f'.gate.{n}' for n in ('weight', 'bias')})
    return gated(inner), {'inner': entries, 'gates': found.entries('gated', values)}


def _scaled(entries: Mapping[str, Any], rank: int, alpha: float) -> PeftTransform:
    """LoRA of the ranks of the entries, all with the scale `alpha / rank`."""
    ranks = {path: entry['a'].shape[-1] for path, entry in entries.items()}
    usual = min(ranks.values())
    others = {re.escape(path): size for path, size in ranks.items() if size != usual}
    return lora(
        rank=usual,
        alpha=alpha * usual / rank,
        rank_pattern=others or None,
        alpha_pattern={path: alpha * size / rank for path, size in others.items()} or None,
        targets=literal(entries),
    )


def _of_each(
    file: File, found: Found, modules: Mapping[str, Any], endings: Mapping[str, str]
) -> dict[str, Arrays]:
    """Arrays that a file has once for each module, without their leading axis of one."""
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
    if arguments.get('bias'):
        raise ValueError('AdapterHub has LoRA without a bias of its own; leave bias out')
    names = 'rank', 'alpha', 'rslora', 'dropout', 'rank_pattern', 'alpha_pattern'
    settings = LowRank(**{each: arguments[each] for each in names})
    scale = one_of([settings.scale_at(path) for path in adapter], 'alpha / rank')
    every = dict(matrices_of(hub, adapter))
    ranks = [each['a'].shape[1] for module, each in every.items() if not is_merged(hub, module)]
    rank = one_of(ranks, 'rank') if ranks else None
    tensors, letters = {}, ''
    for module, arrays in every.items():
        if is_merged(hub, module):
            stored, mine, rank = parted(arrays['a'], arrays['b'], rank)
            letters = letters or mine
            if mine != letters:
                raise ValueError(f'layers adapt {letters} and {mine}; AdapterHub needs one choice')
        else:
            stored = {leaf: value.T for leaf, value in arrays.items()}
        for leaf in 'ab':
            tensors[f'{module}.loras.{name}.lora_{leaf.upper()}'] = stored[leaf]
    assert rank is not None
    return tensors, BLANK | chosen(hub, adapter, letters) | {
        'r': rank,
        'alpha': float(f'{scale * rank:.12g}'),
    }


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
    if any(is_merged(hub, module) for module, _ in matrices_of(hub, adapter['gates'])):
        raise ValueError('AdapterHub has a gate for each of query, key and value, not for all')
    tensors, config = write_lora(hub, inner, adapter['inner'], name)
    for module, arrays in matrices_of(hub, adapter['gates']):
        for each, value in arrays.items():
            tensors[f'{module}.loras.{name}.gate.{each}'] = value[None]
    return tensors, config | {'use_gating': True}
