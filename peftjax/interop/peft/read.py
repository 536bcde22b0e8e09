"""Each method of Hugging Face's peft as one of ours.

A reader takes from `found.tensors` what it understands; what is left is an error of the caller.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.core.layout import Layout
from peftjax.core.model import Model
from peftjax.core.quantized import dense
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft import prompts
from peftjax.interop.peft.formats import FORMATS, METHODS, Format
from peftjax.interop.peft.found import Arrays, Found, Part, bias_named, literal, meant_by
from peftjax.interop.peft.lora import read_adalora, read_lora
from peftjax.interop.peft.names import ROOT
from peftjax.interop.peft.whole import (
    check_shapes,
    read_norms,
    read_tokens,
    read_whole,
)
from peftjax.methods.ia3 import ia3
from peftjax.methods.randlora import randlora
from peftjax.methods.vblora import vblora


def read(found: Found) -> list[Part]:
    """The parts of a chain that the file holds, in its order.

    Raises:
        CheckpointError: a method that is not built here, or what its reader raises.
    """
    kind = str(found.config['peft_type'])
    readers: dict[str, Callable[[Found], Part]] = {
        **{
            name: lambda found, each=form: _read_format(found, each)
            for name, form in FORMATS.items()
        },
        'LORA': read_lora,
        'ADALORA': read_adalora,
        'IA3': _read_ia3,
        'VBLORA': _read_vblora,
        'RANDLORA': _read_randlora,
        'LN_TUNING': read_norms,
        'TRAINABLE_TOKENS': read_tokens,
        'PROMPT_TUNING': prompts.read_prompt,
        'P_TUNING': prompts.read_prompt,
        'PREFIX_TUNING': prompts.read_prefix,
        'ADAPTION_PROMPT': prompts.read_adaption,
    }
    if kind == 'PSOFT':
        raise CheckpointError(
            f'{found.config.where}: a PSOFT adapter depends on the signs of singular vectors, '
            'which are not in the file and differ between machines; see peftjax.principal_subspaces'
        )
    if kind not in readers:
        raise CheckpointError(
            f'{found.config.where}: peft_type {kind!r} is not built here; there are '
            f'{", ".join(sorted(readers))}'
        )
    try:
        rows = kind == 'TRAINABLE_TOKENS' or found.config.get('trainable_token_indices')
        parts = [read_tokens(found)] if rows else []
        if kind != 'TRAINABLE_TOKENS':
            parts.append(readers[kind](found))
        copies = read_whole(found)
        for part in parts:
            check_shapes(found.model, found.where, part)
    except (TypeError, ValueError, OverflowError, LookupError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f'{found.config.where} does not fit a {kind}: {error}') from error
    return [*copies, *parts]


def _read_format(found: Found, form: Format) -> Part:
    config = found.config
    endings = {ours: tensor.ending for ours, tensor in form.tensors.items()}
    modules = found.take(endings, form.optional)
    if not modules:
        raise CheckpointError(
            f'{found.where} holds no tensor ending with {sorted(endings.values())}'
        )
    found.check_targets(modules)
    for name, value in form.fixed.items():
        if name != 'save_projection':
            config.must_be(name, value)
    sign = -1 if form.negated(config) else 1
    turned = {
        module: {ours: sign * form.tensors[ours].load(array) for ours, array in arrays.items()}
        for module, arrays in modules.items()
    }
    arguments = {field.ours: config.plain(field.theirs, field.load) for field in form.fields}
    if form.load_more is not None:
        arguments |= form.load_more(config, next(iter(turned.values())))
    if form.method == 'road':
        turned = {
            module: bias_named(found, module, arrays, 'alpha') for module, arrays in turned.items()
        }
    if form.method == 'delora':
        _check_lengths(found, turned)
    entries = found.entries(form.method, turned)
    if form.drawn is not None:
        sides = {}
        for module in turned:
            place = found.place(module)
            layout = found.layout(place.slot.path)
            sides.setdefault(place.slot.path, {})[place.number] = (
                module,
                layout.inputs,
                layout.outputs,
            )
        arguments[form.drawn.argument] = _drawn(found, form, sides)
    for path, places in (arguments.get('positions') or {}).items():
        if places.shape != entries[path]['values'].shape:
            raise CheckpointError(
                f'{found.where} has {places.shape} places for {path!r} and values of '
                f'{entries[path]["values"].shape}'
            )
    return METHODS[form.method](**arguments, targets=literal(entries)), entries


def _drawn(found: Found, form: Format, sides: Mapping[str, Mapping[int, Any]]) -> Any:
    """What is drawn for each matrix, stacked like its leaf, or one value for all."""
    assert form.drawn is not None
    flat = {
        f'{path}\0{index}': side for path, layers in sides.items() for index, side in layers.items()
    }
    value = form.drawn.load(found.config, flat, found.tensors)
    if not isinstance(value, dict):
        return value
    return {
        path: np.stack([value[f'{path}\0{index}'] for index in sorted(layers)])
        if found.names.slots[path].stacked
        else value[f'{path}\0{0}']
        for path, layers in sides.items()
    }


def _check_lengths(found: Found, modules: Mapping[str, Arrays]) -> None:
    """DeLoRA's lengths of the base's rows are in the file as well: they must be this base's."""
    for module in modules:
        place = found.place(module)
        stored = found.tensors.pop(f'{module}.delora_w_norm', None)
        path = place.slot.path
        mine = lengths(found.model, path, found.layout(path))[place.number]
        if stored is None or stored.shape != mine.shape or not np.allclose(stored, mine, rtol=1e-4):
            raise CheckpointError(
                f'{found.where}: the lengths {module}.delora_w_norm are not those of the rows of '
                f'{place.slot.path!r}; the adapter was made for another base'
            )


def _read_ia3(found: Found) -> Part:
    config = found.config
    modules = found.take({'l': '.ia3_l'})
    found.check_targets(modules)
    feedforward = config.get('feedforward_modules') or []
    named = {}
    for module, arrays in modules.items():
        scale = arrays['l'].reshape(-1)
        fed = bool(feedforward) and meant_by(module.removeprefix(ROOT), feedforward)
        named[module] = (
            {'input': scale} if fed else bias_named(found, module, {'output': scale}, 'output')
        )
    entries = found.entries('ia3', named)
    fed = [path for path, entry in entries.items() if 'input' in entry]
    scaled = [path for path in entries if path not in fed]
    return ia3(targets=literal(scaled), feedforward=literal(fed)), entries


def _read_vblora(found: Found) -> Part:
    config = found.config
    config.must_be('bias', 'none')
    config.must_be('save_only_topk_weights', False)
    modules = found.take({'logits_a': '.vblora_logits_A', 'logits_b': '.vblora_logits_B'})
    found.check_targets(modules)
    bank = found.tensors.pop('base_model.vblora_vector_bank', None)
    if bank is None:
        raise CheckpointError(f'{found.where} lacks base_model.vblora_vector_bank')
    entries = found.entries(
        'vblora',
        {
            module: {'logits_a': a['logits_a'], 'logits_b': a['logits_b'].swapaxes(0, 1)}
            for module, a in modules.items()
        },
    )
    transform = vblora(
        rank=config.whole('r'),
        num_vectors=config.whole('num_vectors'),
        vector_length=config.whole('vector_length'),
        topk=config.whole('topk'),
        dropout=config.number('vblora_dropout', 0.0),
        targets=literal(entries),
    )
    return transform, {'bank': bank, 'sites': entries}


def _read_randlora(found: Found) -> Part:
    config = found.config
    config.must_be('bias', 'none')
    if not config.get('save_projection', True):
        raise CheckpointError(
            f'{config.where}: save_projection is false, and its projections cannot be drawn again'
        )
    for name in ('sparse', 'very_sparse'):
        config.get(name)
    rank = config.whole('r')
    endings = {'l': '.randlora_lambda', 'g': '.randlora_gamma'}
    drawn = {'big_a': '.randlora_A', 'big_b': '.randlora_B'}
    for name in drawn.values():  # What stands at each module, once more.
        found.tensors.pop(f'base_model{name}', None)
    modules = found.take({**endings, **drawn})
    found.check_targets(modules)
    turned = {module: {'l': a['l'].T, 'g': a['g']} for module, a in modules.items()}
    entries = found.entries('randlora', turned)
    bases = {}
    for module, arrays in modules.items():
        path = found.place(module).slot.path
        layout = found.layout(path)
        short, long = sorted((layout.inputs, layout.outputs))
        count = -(-short // rank)
        # Its columns are numbered base by base, the rows of A that they meet rank by rank.
        b = arrays['big_b'][:long, :count].reshape(long, rank, count).transpose(2, 0, 1)
        mine = arrays['big_a'][:, 0, :short], b
        if any(
            map(np.any, (a != b for a, b in zip(bases.setdefault(path, mine), mine, strict=True)))
        ):
            raise CheckpointError(f'{found.where}: layers of {path!r} have different projections')
    transform = randlora(
        rank=rank,
        alpha=config.number('randlora_alpha'),
        dropout=config.number('randlora_dropout', 0.0),
        bases=bases,
        targets=literal(entries),
    )
    return transform, entries


def lengths(model: Model, path: str, layout: Layout) -> np.ndarray:
    """Of the rows of each matrix of a leaf, float [layers, in]."""
    matrix = np.asarray(layout.to_matrix(dense(paths.flatten(model.params)[path])))
    return np.linalg.norm(matrix.reshape(-1, *matrix.shape[-2:]), axis=2)
