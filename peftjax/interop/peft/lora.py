"""LoRA and DoRA, in and out."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.core.quantized import dense
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.factors import take_factors, to_file
from peftjax.interop.peft.found import Arrays, Found, Part, literal, refuse_tied
from peftjax.interop.peft.lora_kinds import (
    Chosen,
    add_biases,
    as_matrices,
    doubled,
    start_of,
    truncated,
    whole_factors,
)
from peftjax.interop.peft.names import ROOT, Names, is_table, matches_end, sliced
from peftjax.interop.peft.written import Written, common, conv1d, layers_of, modules_of
from peftjax.methods.dora import dora
from peftjax.methods.lora import lora

# Fields that make a LoRA another method, one at a time.
_VARIANTS = ('use_dora', 'lora_bias', 'kasa_config', 'use_bdlora', 'alora_invocation_tokens')


def read_lora(found: Found) -> Part:
    config = found.config
    config.must_be('bias', 'none', 'all', 'lora_only')
    config.must_be('layer_replication', None)
    variants = [name for name in _VARIANTS if config.get(name) not in (None, False)]
    if len(variants) > 1:
        raise CheckpointError(f'{config.where}: {" with ".join(variants)} is not built here')
    decomposed, biased, kasa, in_blocks = (name in variants for name in _VARIANTS[:4])
    if in_blocks:
        as_matrices(found)
    modules = take_factors(found, lengths=decomposed, biases=biased)
    for module in modules:
        _drop_base_copy(found, module)
        if is_table(found.place(module).slot):
            refuse_tied(found, module)
    if not modules:
        raise CheckpointError(f'{found.where} holds no LoRA')
    found.check_targets(modules)
    rank, alpha = config.whole('r'), config.number('lora_alpha')
    dropout = config.number('lora_dropout', 0.0)
    rslora, chosen = bool(config.get('use_rslora')), _chosen(found, modules, rank, alpha)
    scales = {p: a / (math.sqrt(r) if rslora else r) for p, (r, a) in chosen.items()}
    start = start_of(found, modules, variants)
    if biased:
        add_biases(found, modules, scales)
    if kasa:
        truncated(found, modules, scales)
        rank, alpha = 2 * rank, doubled(alpha, rslora)
        chosen = {p: (2 * r, doubled(a, rslora)) for p, (r, a) in chosen.items()}
    entries = found.entries(start or ('dora' if decomposed else 'lora'), modules)
    method = dora if decomposed else functools.partial(lora, init=start or 'kaiming')
    transform = method(
        rank=rank,
        alpha=alpha,
        rslora=rslora,
        # The part of KaSA's factors that stands for the base has no dropout.
        dropout=0.0 if kasa else dropout,
        rank_pattern={re.escape(p): r for p, (r, _) in chosen.items() if r != rank} or None,
        alpha_pattern={re.escape(p): a for p, (_, a) in chosen.items() if a != alpha} or None,
        targets=literal(entries),
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
        'use_rslora': rslora,
        'use_dora': part.about.name == 'dora',
        'rank_pattern': ranks,
        'alpha_pattern': alphas,
        'bias': 'none',
        'fan_in_fan_out': conv1d(names, entries),
        'init_lora_weights': True,
    }
