"""LoRA and DoRA, in and out."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.core.quantized import dense
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.factors import take_factors, to_file
from peftjax.interop.peft.found import Arrays, Found, Part, literal, refuse_tied
from peftjax.interop.peft.names import ROOT, Names, is_table, matches_end, sliced
from peftjax.interop.peft.written import Written, common, conv1d, layers_of, modules_of
from peftjax.methods.dora import dora
from peftjax.methods.lora import lora


def read_lora(found: Found) -> Part:
    config = found.config
    config.must_be('lora_bias', False)
    config.must_be('bias', 'none', 'all', 'lora_only')
    for name in ('pissa', 'olora', 'corda', 'loftq', 'lora_ga'):
        start = config.get('init_lora_weights')
        if isinstance(start, str) and start.startswith(name):
            raise CheckpointError(
                f'{config.where}: init_lora_weights is {start!r}: the adapter goes with a base '
                'that its start has changed; convert it to plain LoRA where it was trained'
            )
    decomposed = bool(config.get('use_dora'))
    modules = take_factors(found, lengths=decomposed)
    for module in modules:
        _drop_base_copy(found, module)
        if is_table(found.place(module).slot):
            refuse_tied(found, module)
    if not modules:
        raise CheckpointError(f'{found.where} holds no LoRA')
    found.check_targets(modules)
    rank, alpha = config.whole('r'), config.number('lora_alpha')
    chosen = _chosen(found, modules, rank, alpha)
    method = dora if decomposed else lora
    entries = found.entries(method.__name__, modules)
    transform = method(
        rank=rank,
        alpha=alpha,
        rslora=bool(config.get('use_rslora')),
        dropout=config.number('lora_dropout', 0.0),
        rank_pattern={re.escape(p): r for p, (r, _) in chosen.items() if r != rank} or None,
        alpha_pattern={re.escape(p): a for p, (_, a) in chosen.items() if a != alpha} or None,
        targets=literal(entries),
    )
    return transform, entries


def _chosen(
    found: Found, modules: Mapping[str, Arrays], rank: int, alpha: float
) -> dict[str, tuple[int, float]]:
    """Rank and alpha of each leaf, by the patterns of the config."""
    config = found.config
    ranks, alphas = config.get('rank_pattern') or {}, config.get('alpha_pattern') or {}
    names = [module.removeprefix(ROOT) for module in modules]
    chosen: dict[str, tuple[int, float]] = {}
    for field, patterns in (('rank_pattern', ranks), ('alpha_pattern', alphas)):
        _check_meant(found, field, patterns, names)
    for module, arrays in modules.items():
        path, bare = found.place(module).slot.path, module.removeprefix(ROOT)
        here = _by_end(ranks, bare, rank), _by_end(alphas, bare, alpha)
        if arrays['a'].shape[-1] != here[0]:
            raise CheckpointError(
                f'{found.where}: {bare} has rank {arrays["a"].shape[-1]}, its config says {here[0]}'
            )
        if chosen.setdefault(path, here) != here:
            raise CheckpointError(
                f'{found.where}: layers of {path!r} have different ranks or alphas; write '
                'peftjax.load(..., scan=False)'
            )
    return chosen


def _check_meant(found: Found, field: str, patterns: Any, modules: list[str]) -> None:
    """Raises CheckpointError for a key that matches none of the adapted modules."""
    if not isinstance(patterns, dict):
        raise CheckpointError(f'{str(patterns)[:80]!r} is no object of patterns')
    for key in patterns:
        if not any(matches_end(key, module) for module in modules):
            raise CheckpointError(
                f'{found.config.where}: {field} {key!r} matches none of the adapted modules'
                f'{paths.nearby(key, modules)}'
            )


def _by_end(patterns: Any, module: str, default: Any) -> Any:
    found = next((value for key, value in patterns.items() if matches_end(key, module)), default)
    if type(found) not in (int, float):
        raise CheckpointError(f'{found!r}, the rank or alpha of {module}, is no number')
    return found


def _drop_base_copy(found: Found, module: str) -> None:
    """The weight beside its own factors is the frozen one: the library writes that of embeddings
    and heads, so that a table with new rows is in the file."""
    name = f'{module}.base_layer.weight'
    if name not in found.tensors:
        return
    slot, number = found.place(module)
    frozen = sliced(slot, dense(paths.flatten(found.model.params)[slot.path]), number)
    mine, theirs = frozen.T if slot.transposed else frozen, found.tensors.pop(name)
    if not np.array_equal(theirs.astype(mine.dtype), mine):
        raise CheckpointError(
            f'{found.where}: {name} is not the {slot.path!r} of this model; the adapter was '
            'made for another base, or trains the layer beside its factors'
        )


def write_lora(model: Any, names: Names, arguments: Any, entries: Any, part: Any) -> Written:
    del model
    rank, alpha = arguments['rank'], arguments['alpha']
    alpha = rank if alpha is None else alpha
    start = arguments.get('init')
    if isinstance(start, str) and start in ('pissa', 'olora'):
        raise ValueError(
            f'lora with init={start!r} goes with a base of its own: merge it, or write the base as '
            'well'
        )
    tensors, ranks, alphas = {}, {}, {}
    for path, entry in entries.items():
        default = entry['a'].shape[-1] if arguments['alpha'] is None else alpha
        here = paths.first_match(arguments['alpha_pattern'], path, default)
        slot = names.slots[path]
        if is_table(slot) and names.tied:
            raise ValueError(
                f'{path!r} is adapted where it is looked up and as the tied head; peft would '
                'change the first alone'
            )
        for module, arrays in layers_of(names, path, entry):
            for ending, value in to_file(slot, arrays).items():
                tensors[f'{ROOT}{module}{ending}'] = value
            if (found := arrays['a'].shape[1]) != rank:
                ranks[module] = found
            if here != alpha:
                alphas[module] = here
    modules = modules_of(names, entries)
    return tensors, {
        **common(names, 'LORA', modules),
        'r': rank,
        'lora_alpha': alpha,
        'lora_dropout': arguments['dropout'],
        'use_rslora': arguments['rslora'],
        'use_dora': part.about.name == 'dora',
        'rank_pattern': ranks,
        'alpha_pattern': alphas,
        'bias': 'none',
        'fan_in_fan_out': conv1d(names, entries),
        'init_lora_weights': True,
    }
