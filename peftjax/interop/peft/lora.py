"""LoRA and DoRA, in and out."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.core.quantized import dense
from peftjax.core.transform import PeftTransform
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.factors import take_factors, to_file
from peftjax.interop.peft.found import Arrays, Found, Part, literal
from peftjax.interop.peft.lora_kinds import (
    Chosen,
    as_matrices,
    doubled,
    named_biases,
    start_of,
    whole_factors,
)
from peftjax.interop.peft.names import ROOT, Names, is_table, matches_end, sliced
from peftjax.interop.peft.written import Written, common, conv1d, layers_of, modules_of
from peftjax.methods.low_rank import lora_bias
from peftjax.methods.low_rank.dora import dora
from peftjax.methods.low_rank.kasa import kasa
from peftjax.methods.low_rank.lora import lora

# Fields that make a LoRA another method, one at a time.
_METHODS: dict[str, tuple[Callable[..., PeftTransform], tuple[str, ...]]] = {
    'use_dora': (dora, ('magnitude',)),
    'lora_bias': (lora, ('bias',)),
    'kasa_config': (kasa, ('diag',)),
    'use_bdlora': (lora, ()),
    'alora_invocation_tokens': (lora, ()),
}
"""The method, and the tensors beside its factors."""


def read_lora(found: Found) -> Part:
    config = found.config
    config.must_be('bias', 'none', 'all', 'lora_only')
    variants = [name for name in _METHODS if config.get(name) not in (None, False)]
    if len(variants) > 1:
        raise CheckpointError(f'{config.where}: {" with ".join(variants)} is not built here')
    if config.get('layer_replication'):
        raise CheckpointError(
            f'{config.where}: layer_replication gives the base layers that it does not have; '
            'make a checkpoint with these layers, and take the field away'
        )
    method, beside = next((_METHODS[each] for each in variants), (lora, ()))
    if 'use_bdlora' in variants:
        as_matrices(found)
    modules = take_factors(found, beside)
    if 'diag' in beside:
        found.linear_alone(modules)
    for module in modules:
        _drop_base_copy(found, module)
        slot = found.place(module).slot
        if is_table(slot) and (told := found.names.table_refused(slot)):
            raise CheckpointError(f'{found.where}: {told}')
    if not modules:
        raise CheckpointError(f'{found.where} holds no LoRA')
    found.check_targets(modules)
    rank, alpha = config.whole('r'), config.number('lora_alpha')
    chosen = _chosen(found, modules, rank, alpha)
    start, own_bias = start_of(found, modules, variants), 'bias' in beside
    more = {'init': start or 'kaiming', 'bias': own_bias} if method is lora else {}
    name = lora_bias.NAME if own_bias else start or method.__name__
    entries = found.entries(name, named_biases(found, modules))
    transform = method(
        rank=rank,
        alpha=alpha,
        rslora=bool(config.get('use_rslora')),
        dropout=config.number('lora_dropout', 0.0),
        rank_pattern={re.escape(p): r for p, (r, _) in chosen.items() if r != rank} or None,
        alpha_pattern={re.escape(p): a for p, (_, a) in chosen.items() if a != alpha} or None,
        targets=literal(entries),
        **more,
    )
    return transform, entries


def _chosen(found: Found, modules: Mapping[str, Arrays], rank: int, alpha: float) -> Chosen:
    """Rank and alpha of each leaf, by the patterns of the config."""
    config = found.config
    ranks, alphas = config.get('rank_pattern') or {}, config.get('alpha_pattern') or {}
    names = [module.removeprefix(ROOT) for module in modules]
    chosen: Chosen = {}
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
    """Drops the frozen weight beside factors: the library writes that of embeddings and heads, so
    that a table with new rows is in the file."""
    name = f'{module}.base_layer.weight'
    if name not in found.tensors:
        return
    slot, number = found.place(module)
    frozen = sliced(slot, dense(paths.flatten(found.model.params)[slot.path]), number)
    mine, theirs = frozen.T if slot.transposed else frozen, found.tensors.pop(name)
    if theirs.shape != mine.shape:
        raise CheckpointError(
            f'{found.where}: {name} is {theirs.shape}, and {slot.path!r} of this model holds '
            f'{mine.shape}; for a table with new rows write '
            f'peftjax.load(..., vocab_size={len(theirs)})'
        )
    if not np.array_equal(theirs.astype(mine.dtype), mine):
        raise CheckpointError(
            f'{found.where}: {name} is not the {slot.path!r} of this model; the adapter was '
            'made for another base, or trains the layer beside its factors'
        )


def _alpha_at(arguments: Mapping[str, Any], path: str, rank: int) -> float:
    default = rank if arguments['alpha'] is None else arguments['alpha']
    return paths.first_match(arguments.get('alpha_pattern'), path, default)


def write_lora(model: Any, names: Names, arguments: Any, entries: Any, part: Any) -> Written:
    rslora, trained = arguments['rslora'], entries
    entries, twice = whole_factors(model, part, entries)
    rank = (1 + twice) * arguments['rank']
    alpha = arguments['rank'] if arguments['alpha'] is None else arguments['alpha']
    alpha = doubled(alpha, rslora) if twice else alpha
    tensors, ranks, alphas = {}, {}, {}
    for path, entry in entries.items():
        here = _alpha_at(arguments, path, trained[path]['b'].shape[-2])
        here = doubled(here, rslora) if twice else here
        slot = names.slots[path]
        if 'diag' in entry and not (slot.transposed and len(slot.shape) == 2):
            raise ValueError(
                f'peft has KaSA on torch.nn.Linear alone, and {path!r} is none there; leave it out '
                'of the targets, or merge the adapter'
            )
        if is_table(slot) and (told := names.table_refused(slot)):
            raise ValueError(told)
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
        # With twice the rank, the second half stands for a part of the base.
        'lora_dropout': 0.0 if twice else arguments['dropout'],
        'use_rslora': rslora,
        'use_dora': any('magnitude' in entry for entry in entries.values()),
        'lora_bias': bool(arguments.get('bias')),
        'kasa_config': {} if any('diag' in entry for entry in entries.values()) else None,
        'rank_pattern': ranks,
        'alpha_pattern': alphas,
        'bias': 'none',
        'fan_in_fan_out': conv1d(names, entries),
        'init_lora_weights': True,
    }
