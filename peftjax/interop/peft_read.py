"""Each method of Hugging Face's peft as one of ours.

A reader takes from `found.tensors` what it understands; what is left is an error of the caller.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from peftjax.core import paths
from peftjax.core.base import Adapter, Model, PeftTransform, WeightAdapter
from peftjax.interop import peft_formats, peft_prompts
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft_config import PeftConfig
from peftjax.interop.peft_formats import FORMATS, Format
from peftjax.interop.peft_names import ROOT, Names, Place, checked, matches_end, stacked
from peftjax.methods.adalora import adalora
from peftjax.methods.dora import dora
from peftjax.methods.ia3 import ia3
from peftjax.methods.lora import lora
from peftjax.methods.randlora import randlora
from peftjax.methods.select import select
from peftjax.methods.trainable_tokens import trainable_tokens
from peftjax.methods.vblora import vblora

Part = tuple[PeftTransform, Adapter]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class Found:
    """A file that is being read: `tensors` lose what has been taken."""

    model: Model
    names: Names
    config: PeftConfig
    tensors: Arrays
    where: str

    def take(self, endings: Mapping[str, str], optional: Iterable[str] = ()) -> dict[str, Arrays]:
        """`{module: {our name: array}}` of all tensors with these endings.

        Raises:
            CheckpointError: a module of the base that is not there, or one without one of them.
        """
        found: dict[str, Arrays] = {}
        for ours, ending in endings.items():
            for name in [name for name in self.tensors if name.endswith(ending)]:
                module = name.removesuffix(ending)
                if self.names.place_of_module(module) is None:
                    near = paths.near_names(module.removeprefix(ROOT), self.names.modules())
                    raise CheckpointError(
                        f'{self.where}: {name} belongs to no module of this model; near names: '
                        f'{near}'
                    )
                found.setdefault(module, {})[ours] = self.tensors.pop(name)
        for module, arrays in found.items():
            if absent := sorted(set(endings) - set(optional) - set(arrays)):
                lacking = [module + endings[name] for name in absent]
                raise CheckpointError(f'{self.where} lacks {", ".join(lacking)}')
        return found

    def by_leaf(self, modules: Mapping[str, Arrays]) -> dict[str, Arrays]:
        """Arrays of modules as those of the leaves that hold their matrices."""
        grouped: dict[str, dict[int, Arrays]] = {}
        for module, arrays in modules.items():
            place = self.place(module)
            grouped.setdefault(place.slot.path, {})[place.index] = arrays
        return {
            path: stacked(self.names.slots[path], layers, self.where)
            for path, layers in grouped.items()
        }

    def place(self, module: str) -> Place:
        place = self.names.place_of_module(module)
        assert place is not None
        return place

    def entries(self, modules: Mapping[str, Arrays]) -> dict[str, WeightAdapter]:
        """What a weight method keeps for them."""
        found = {}
        for path, arrays in self.by_leaf(modules).items():
            layout = self.model.sites.weights[path].layout
            if layout is None:
                raise CheckpointError(f'{self.where} adapts {path!r}, which has no matrix form')
            found[path] = WeightAdapter(layout, arrays)
        return found

    def check_targets(self, modules: Iterable[str]) -> None:
        """Raises CheckpointError where target_modules means other modules than have tensors."""
        config, chosen = self.config, {module.removeprefix(ROOT) for module in modules}
        targets, excluded = config.get('target_modules'), config.get('exclude_modules')
        layers, pattern = config.get('layers_to_transform'), config.get('layers_pattern')
        if targets is None or targets == 'all-linear':
            return
        # Modules trained whole are no targets, whatever is in them.
        saved = config.get('modules_to_save') or []
        meant = {
            name
            for name in self.names.modules()
            if _meant(name, targets)
            and not any(f'.{each}.' in f'.{name}.' for each in saved)
            and not (excluded and _meant(name, excluded))
            and _in_layers(name, layers, pattern)
        }
        # Modules that a list names by the way (a norm, say) and the method cannot act on have none.
        if absent := sorted(meant - chosen):
            raise CheckpointError(
                f'{self.where} lacks tensors of {absent[:8]}, which target_modules means'
            )
        if extra := sorted(chosen - meant):
            raise CheckpointError(
                f'{self.where} has tensors of {extra[:8]}, which target_modules does not mean'
            )


def _meant(name: str, targets: Any) -> bool:
    if isinstance(targets, str):
        return bool(re.fullmatch(checked(targets), name))
    if not isinstance(targets, list):
        raise CheckpointError(f'target_modules is {str(targets)[:80]!r}, no pattern and no list')
    return any(f'.{name}'.endswith(f'.{target}') for target in targets)


def _in_layers(name: str, layers: Any, pattern: Any) -> bool:
    if layers is None or layers == []:
        return True
    wanted = [layers] if isinstance(layers, int) else layers
    scopes = [pattern] if isinstance(pattern, str) else pattern or [r'[^.]*']
    for scope in scopes:
        if match := re.match(rf'.*\.{checked(scope)}\.(\d+)\.', f'.{name}'):
            return int(match[1]) in wanted
    return False


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
        'LORA': _read_lora,
        'ADALORA': _read_adalora,
        'IA3': _read_ia3,
        'VBLORA': _read_vblora,
        'RANDLORA': _read_randlora,
        'LN_TUNING': _read_norms,
        'TRAINABLE_TOKENS': _read_tokens,
        'PROMPT_TUNING': peft_prompts.read_prompt,
        'P_TUNING': peft_prompts.read_prompt,
        'PREFIX_TUNING': peft_prompts.read_prefix,
        'ADAPTION_PROMPT': peft_prompts.read_adaption,
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
        parts = [_read_tokens(found)] if rows else []
        if kind != 'TRAINABLE_TOKENS':
            parts.append(readers[kind](found))
        copies = _read_whole(found)
        for part in parts:
            _check_shapes(found, part)
    except (TypeError, ValueError, OverflowError, LookupError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f'{found.config.where} does not fit a {kind}: {error}') from error
    return [*copies, *parts]


def _check_shapes(found: Found, part: Part) -> None:
    transform, adapter = part
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found.model.params
    )
    try:
        expected = jax.eval_shape(
            transform.init, jax.random.key(0), found.model.replace(params=abstract)
        )
    except ValueError as error:
        raise CheckpointError(f'{found.where} does not fit this model: {error}') from error
    mine, theirs = paths.flatten(expected), paths.flatten(adapter)
    wrong = [
        f'{path} is {theirs[path].shape if path in theirs else "missing"}, needs {leaf.shape}'
        for path, leaf in mine.items()
        if path not in theirs or theirs[path].shape != leaf.shape
    ]
    if wrong or set(theirs) - set(mine):
        extra = sorted(set(theirs) - set(mine))
        raise CheckpointError(
            f'{found.where} does not fit this model and its config: {"; ".join(wrong[:8])}'
            + (f'; not expected: {extra[:8]}' if extra else '')
        )


def literal(leaves: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(re.escape, leaves))


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
    entries = found.entries(turned)
    if form.drawn is not None:
        sides = {}
        for module in turned:
            place = found.place(module)
            layout = found.model.sites.weights[place.slot.path].layout
            assert layout is not None
            sides.setdefault(place.slot.path, {})[place.index] = (
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
    return peft_formats.METHODS[form.method](**arguments, targets=literal(entries)), entries


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


def bias_named(found: Found, module: str, arrays: Arrays, name: str) -> Arrays:
    """`arrays`, the one called `name` renamed where the module has a bias."""
    if found.names.place(f'{module}.bias') is None:
        return arrays
    return {f'{key}_and_bias' if key == name else key: value for key, value in arrays.items()}


def _check_lengths(found: Found, modules: Mapping[str, Arrays]) -> None:
    """DeLoRA's lengths of the base's rows are in the file as well: they must be this base's."""
    for module in modules:
        place = found.place(module)
        stored = found.tensors.pop(f'{module}.delora_w_norm', None)
        layout = found.model.sites.weights[place.slot.path].layout
        assert layout is not None
        mine = lengths(found.model, place.slot.path, WeightAdapter(layout, {}))[place.index]
        if stored is None or stored.shape != mine.shape or not np.allclose(stored, mine, rtol=1e-4):
            raise CheckpointError(
                f'{found.where}: the lengths {module}.delora_w_norm are not those of the rows of '
                f'{place.slot.path!r}; the adapter was made for another base'
            )


def _read_lora(found: Found) -> Part:
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
    endings = {'a': '.lora_A.weight', 'b': '.lora_B.weight'}
    if decomposed:
        endings['magnitude'] = '.lora_magnitude_vector'
    dense = found.take(endings)
    tables = found.take({'a': '.lora_embedding_A', 'b': '.lora_embedding_B'})
    for module in tables:
        _drop_base_copy(found, module)
        _refuse_tied(found, module)
    modules = {
        module: {name: value if name == 'magnitude' else value.T for name, value in arrays.items()}
        for module, arrays in {**dense, **tables}.items()
    }
    if not modules:
        raise CheckpointError(f'{found.where} holds no LoRA')
    found.check_targets(modules)
    ranks, alphas = config.get('rank_pattern') or {}, config.get('alpha_pattern') or {}
    rank, alpha = config.whole('r'), config.number('lora_alpha')
    chosen: dict[str, tuple[int, float]] = {}
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
    entries = found.entries(modules)
    method = dora if decomposed else lora
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


def _by_end(patterns: Any, module: str, default: Any) -> Any:
    if not isinstance(patterns, dict):
        raise CheckpointError(f'{str(patterns)[:80]!r} is no object of patterns')
    found = next((value for key, value in patterns.items() if matches_end(key, module)), default)
    if type(found) not in (int, float):
        raise CheckpointError(f'{found!r}, the rank or alpha of {module}, is no number')
    return found


def _refuse_tied(found: Found, module: str) -> None:
    if found.names.tied:
        raise CheckpointError(
            f'{found.where} changes {module.removeprefix(ROOT)} where it is looked up and not '
            'where it is the head, although the model ties the two; here an adapter acts on both'
        )


def _drop_base_copy(found: Found, module: str) -> None:
    """The embedding beside its own factors is the frozen one, written for convenience."""
    name = f'{module}.base_layer.weight'
    if name not in found.tensors:
        return
    place = found.place(module)
    mine = np.asarray(paths.flatten(found.model.params)[place.slot.path])
    if not np.array_equal(found.tensors.pop(name), mine):
        raise CheckpointError(
            f'{found.where}: {name} is not the {place.slot.path!r} of this model; the adapter was '
            'made for another base, or trains the embedding beside its factors'
        )


def _read_adalora(found: Found) -> Part:
    config = found.config
    modules = found.take({'p': '.lora_A', 'q': '.lora_B', 'lambda': '.lora_E'})
    config.must_be('bias', 'none')
    config.must_be('use_dora', False)
    config.must_be('use_rslora', False)
    if config.get('rank_pattern'):
        raise CheckpointError(
            f'{config.where}: rank_pattern holds ranks that training has cut; only adapters of one '
            'rank are built here'
        )
    config.get('r')
    entries = found.entries(
        {
            module: {'p': a['p'].T, 'q': a['q'].T, 'lambda': a['lambda'][:, 0]}
            for module, a in modules.items()
        }
    )
    found.check_targets(modules)
    transform = adalora(
        init_rank=config.whole('init_r'),
        alpha=config.number('lora_alpha'),
        dropout=config.number('lora_dropout', 0.0),
        targets=literal(entries),
    )
    return transform, entries


def _read_ia3(found: Found) -> Part:
    config = found.config
    modules = found.take({'l': '.ia3_l'})
    found.check_targets(modules)
    feedforward = config.get('feedforward_modules') or []
    named = {}
    for module, arrays in modules.items():
        scale = arrays['l'].reshape(-1)
        fed = bool(feedforward) and _meant(module.removeprefix(ROOT), feedforward)
        named[module] = (
            {'input': scale} if fed else bias_named(found, module, {'output': scale}, 'output')
        )
    entries = found.entries(named)
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
        {
            module: {'logits_a': a['logits_a'], 'logits_b': a['logits_b'].swapaxes(0, 1)}
            for module, a in modules.items()
        }
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
    entries = found.entries({module: {'l': a['l'].T, 'g': a['g']} for module, a in modules.items()})
    bases = {}
    for module, arrays in modules.items():
        path = found.place(module).slot.path
        layout = entries[path].layout
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


def _read_whole(found: Found) -> list[Part]:
    """The leaves that the file holds whole: heads, embeddings, biases, norms."""
    grouped: dict[str, dict[int, Arrays]] = {}
    for name in list(found.tensors):
        if '.original_module.' in name:
            found.tensors.pop(name)  # What the trained copy of a module stands in for.
            continue
        place = found.names.place(name.replace('.modules_to_save.', '.'))
        if place is None or (name.endswith('.weight') and 'lora' in name):
            continue
        if place.slot.path.endswith('embedding'):
            _refuse_tied(found, name)
        value = found.tensors.pop(name)
        turned = value.T if place.slot.transposed else value
        grouped.setdefault(place.slot.path, {})[place.index] = {'w': turned}
    if not grouped:
        return []
    adapter = {
        path: stacked(found.names.slots[path], layers, found.where)['w']
        for path, layers in grouped.items()
    }
    part = select(literal(adapter)), adapter
    _check_shapes(found, part)
    return [part]


def _read_norms(found: Found) -> Part:
    found.tensors.update(
        {
            name.replace('.ln_tuning_layers.', '.'): found.tensors.pop(name)
            for name in list(found.tensors)
            if '.ln_tuning_layers.' in name
        }
    )
    found.config.get('target_modules')
    parts = _read_whole(found)
    if not parts:
        raise CheckpointError(f'{found.where} holds no layer norm')
    return parts[0]


ROWS = '.trainable_tokens_delta'


def _read_tokens(found: Found) -> Part:
    """Rows of one embedding; the file calls them a change, but they are new rows."""
    config = found.config
    indices = config.get('trainable_token_indices') or config.get('token_indices')
    if isinstance(indices, dict) and len(indices) == 1:
        (indices,) = indices.values()
    if not isinstance(indices, list) or not all(type(each) is int for each in indices):
        raise CheckpointError(f'{config.where}: {indices!r} are not the tokens of one embedding')
    config.get('target_modules')
    rows = {name: found.tensors.pop(name) for name in list(found.tensors) if name.endswith(ROWS)}
    places = {}
    for name, value in rows.items():
        module = name.removesuffix(ROWS).removesuffix('.token_adapter')
        place = found.names.place_of_module(module)
        if place is not None and place.slot.path.endswith('embedding'):
            places[place.slot.path] = value
    if len(places) != 1:
        raise CheckpointError(f'{found.where} holds rows of {sorted(rows)}, one embedding is meant')
    (path, value), *_ = places.items()
    # A tied head's rows stand in the file as well.
    if any(not np.array_equal(value, other) for other in rows.values()):
        raise CheckpointError(f'{found.where}: the rows {sorted(rows)} of one table differ')
    return trainable_tokens(indices, targets=re.escape(path)), {path: value}


def lengths(model: Model, path: str, entry: WeightAdapter) -> np.ndarray:
    """Of the rows of each matrix of a leaf, float [layers, in]."""
    matrix = np.asarray(entry.layout.to_matrix(paths.flatten(model.params)[path]))
    return np.linalg.norm(matrix.reshape(-1, *matrix.shape[-2:]), axis=2)
