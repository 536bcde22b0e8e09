"""Each of our methods as one of Hugging Face's peft, where it has one."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.model import Model
from peftjax.core.transform import PeftTransform
from peftjax.interop.peft import prompts
from peftjax.interop.peft.formats import FORMATS, METHODS
from peftjax.interop.peft.found import Arrays, Part
from peftjax.interop.peft.names import ROOT, Names, sliced
from peftjax.interop.peft.read import lengths
from peftjax.interop.peft.whole import ROWS

Written = tuple[dict[str, np.ndarray], dict[str, Any]]


def write(model: Model, names: Names, transform: PeftTransform, adapter: Adapter) -> Written:
    """Tensors and config of a method, alone or in a chain with leaves and tokens trained whole.

    Raises:
        ValueError: what the library does not have.
    """
    tensors: dict[str, np.ndarray] = {}
    fields: dict[str, Any] = {}
    methods, copies, rows = [], {}, {}
    for part, entry in _flat(transform, adapter):
        about = part.about
        if about is None:
            raise ValueError("a method of one's own has no form in the files of peft")
        if about.name in ('select', 'full'):
            copies |= entry
        elif about.name == 'trainable_tokens':
            rows[tuple(about.arguments['ids'])] = entry
        else:
            methods.append((part, entry))
    if len(methods) > 1 or len(rows) > 1:
        found = [part.about.name for part, _ in methods]  # pyright: ignore[reportOptionalMemberAccess]
        raise ValueError(f'one file of peft holds one method, here are {found}; save them apart')
    if not methods:
        return _write_alone(names, copies, rows)
    part, entry = methods[0]
    writer = _WRITERS.get(part.about.name, _write_format)  # pyright: ignore[reportOptionalMemberAccess]
    tensors, fields = writer(model, names, part.about.arguments, entry, part)
    kind = fields['peft_type']
    if copies:
        biases = _biases(names, copies)
        if biases and kind != 'LORA':
            raise ValueError('peft trains biases beside LoRA alone; leave them out')
        kept, modules = _copies(names, {p: copies[p] for p in copies if p not in biases})
        # Prompts have the base itself in them, without a wrapper around its modules.
        root = 'base_model.' if 'num_virtual_tokens' in fields else ROOT
        tensors |= {f'{root}{name}': value for name, value in kept.items()}
        fields['modules_to_save'] = _saved(names, modules)
        if biases:
            adapted = {name.rpartition('.lora_')[0] for name in tensors if '.lora_' in name}
            fields['bias'] = _which(names, biases, adapted, set(copies))
            tensors |= _bias_tensors(names, {p: copies[p] for p in biases}, adapted)
    for ids, tables in rows.items():
        ((path, value),) = tables.items()
        module = names.module(path, 0)
        tensors[f'{ROOT}{module}.token_adapter{ROWS}'] = np.asarray(value)
        fields['trainable_token_indices'] = {module.rpartition('.')[2]: list(map(int, ids))}
    return tensors, fields


def _flat(transform: PeftTransform, adapter: Adapter) -> list[Part]:
    if transform.about is None or transform.about.name not in ('chain', 'named_chain'):
        return [(transform, adapter)]
    members = transform.about.arguments['transforms']
    named = isinstance(members, Mapping)
    pairs = (
        [(members[n], adapter[n]) for n in members] if named else zip(members, adapter, strict=True)
    )
    return [part for member, entry in pairs for part in _flat(member, entry)]


def _layers(names: Names, path: str, arrays: Mapping[str, Any]) -> list[tuple[str, Arrays]]:
    """Module names, and the arrays of each layer of a leaf."""
    slot = names.slots[path]
    return [
        (
            names.module(path, index),
            {name: sliced(slot, value, index) for name, value in arrays.items()},
        )
        for index in range(len(slot.names))
    ]


def _modules_of(names: Names, entries: Mapping[str, Any]) -> dict[str, Arrays]:
    return dict(pair for path, entry in entries.items() for pair in _layers(names, path, entry))


def _common(names: Names, kind: str, modules: Iterable[str]) -> dict[str, Any]:
    return {'peft_type': kind, 'target_modules': names.short(modules), 'modules_to_save': None}


def _copies(names: Names, leaves: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Tensors of modules that are trained whole, and their names."""
    tensors, modules = {}, set()
    for path, value in leaves.items():
        owner = paths.parent(path)
        absent = [p for p in names.slots if paths.parent(p) == owner and p not in leaves]
        if absent:
            raise ValueError(
                f'{path!r} is trained whole and {absent} not; peft trains whole modules: choose '
                'all leaves of one'
            )
        if path.endswith('embedding') and names.tied:
            raise ValueError(
                f'{path!r} is trained where it is looked up and as the tied head; peft would '
                'change the first alone'
            )
        slot = names.slots[path]
        for index in range(len(slot.names)):
            one = sliced(slot, value, index)
            name = names.tensor(path, index)
            modules.add(name.rpartition('.')[0])
            tensors[name] = one.T if slot.transposed else one
    return tensors, modules


def _saved(names: Names, modules: set[str]) -> list[str] | None:
    """`modules_to_save` for these; a head of several layers is one module there."""
    head = {name for name in names.modules() if name.startswith('classifier.')}
    if head & modules and not head <= modules:
        raise ValueError(
            f'{sorted(head & modules)} are trained whole and {sorted(head - modules)} not; peft '
            'trains a head as one module: choose all its leaves'
        )
    rest = names.short(modules - head)
    return ([*rest, 'classifier'] if head & modules else rest) or None


def _biases(names: Names, leaves: Mapping[str, Any]) -> set[str]:
    """Those whose modules are not trained whole."""
    return {
        path
        for path in leaves
        if path.endswith('bias')
        and any(
            paths.parent(other) == paths.parent(path) and other not in leaves
            for other in names.slots
        )
    }


def _which(names: Names, biases: set[str], adapted: set[str], leaves: set[str]) -> str:
    """What the library calls this choice of biases: 'all', or those of adapted modules."""
    modules = {name.removeprefix(ROOT) for name in adapted}
    of_adapted = {
        path
        for path, slot in names.slots.items()
        if path.endswith('bias')
        and any(
            names.module(path, i).removesuffix('.bias') in modules for i in range(len(slot.names))
        )
    }
    if biases == of_adapted:
        return 'lora_only'
    every = {path for path in names.slots if path.endswith('bias')}
    if every <= leaves:
        return 'all'
    raise ValueError(
        f'peft trains all biases, or those of adapted modules, not {sorted(biases)[:6]}; '
        "choose r'.*bias'"
    )


def _bias_tensors(
    names: Names, leaves: Mapping[str, Any], adapted: set[str]
) -> dict[str, np.ndarray]:
    tensors = {}
    for path, value in leaves.items():
        slot = names.slots[path]
        for index in range(len(slot.names)):
            module = ROOT + names.tensor(path, index).removesuffix('.bias')
            inside = '.base_layer' if module in adapted else ''
            tensors[f'{module}{inside}.bias'] = sliced(slot, value, index)
    return tensors


def _write_alone(names: Names, copies: Mapping[str, Any], rows: Mapping[Any, Any]) -> Written:
    if rows and not copies:
        ((ids, tables),) = rows.items()
        ((path, value),) = tables.items()
        module = names.module(path, 0)
        tensors = {f'{ROOT}{module}{ROWS}': np.asarray(value)}
        if names.tied:
            tensors[f'{ROOT}lm_head{ROWS}'] = np.asarray(value)
        return tensors, {
            **_common(names, 'TRAINABLE_TOKENS', [module]),
            'token_indices': list(map(int, ids)),
        }
    norms = {path for path in copies if re.search(r'(norm|ln_\w+)/(scale|bias)$', path)}
    if rows or not norms:
        raise ValueError(
            f'peft has a file for layer norms or for tokens alone, not for {sorted(copies)[:6]}; '
            'chain them with a method, or save parameters instead'
        )
    tensors = {}
    kept, modules = _copies(names, {path: copies[path] for path in norms})
    for name, value in kept.items():
        module, _, kind = name.rpartition('.')
        tensors[f'{ROOT}{module}.ln_tuning_layers.{kind}'] = value
    others, saved = _copies(names, {path: copies[path] for path in copies if path not in norms})
    tensors |= {ROOT + name: value for name, value in others.items()}
    fields = _common(names, 'LN_TUNING', modules)
    return tensors, {**fields, 'modules_to_save': _saved(names, saved)}


def _write_lora(model: Any, names: Names, arguments: Any, entries: Any, part: Any) -> Written:
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
        layout = entry.layout
        default = entry['a'].shape[-1] if arguments['alpha'] is None else alpha
        here = paths.first_match(arguments['alpha_pattern'], path, default)
        for module, arrays in _layers(names, path, entry):
            if layout.lookup:
                tensors[f'{ROOT}{module}.lora_embedding_A'] = arrays['a'].T
                tensors[f'{ROOT}{module}.lora_embedding_B'] = arrays['b'].T
                if names.tied:
                    raise ValueError(
                        f'{path!r} is adapted where it is looked up and as the tied head; peft '
                        'would change the first alone'
                    )
            else:
                tensors[f'{ROOT}{module}.lora_A.weight'] = arrays['a'].T
                tensors[f'{ROOT}{module}.lora_B.weight'] = arrays['b'].T
            if 'magnitude' in arrays:
                tensors[f'{ROOT}{module}.lora_magnitude_vector'] = arrays['magnitude']
            if (found := arrays['a'].shape[1]) != rank:
                ranks[module] = found
            if here != alpha:
                alphas[module] = here
    modules = _modules_of(names, entries)
    return tensors, {
        **_common(names, 'LORA', modules),
        'r': rank,
        'lora_alpha': alpha,
        'lora_dropout': arguments['dropout'],
        'use_rslora': arguments['rslora'],
        'use_dora': part.about.name == 'dora',
        'rank_pattern': ranks,
        'alpha_pattern': alphas,
        'bias': 'none',
        'fan_in_fan_out': _conv1d(names, entries),
        'init_lora_weights': True,
    }


def _conv1d(names: Names, entries: Iterable[str]) -> bool:
    """Whether the base's file keeps these matrices as [in, out], which peft asks to be told."""
    return any(not names.slots[path].transposed and path.endswith('kernel') for path in entries)


def _write_adalora(model: Any, names: Names, arguments: Any, entries: Any, part: Any) -> Written:
    del model, part
    tensors = {}
    for module, arrays in _modules_of(names, entries).items():
        tensors[f'{ROOT}{module}.lora_A'] = arrays['p'].T
        tensors[f'{ROOT}{module}.lora_B'] = arrays['q'].T
        tensors[f'{ROOT}{module}.lora_E'] = arrays['lambda'][:, None]
    rank, alpha = arguments['init_rank'], arguments['alpha']
    return tensors, {
        **_common(names, 'ADALORA', _modules_of(names, entries)),
        'init_r': rank,
        'target_r': rank,
        'lora_alpha': rank if alpha is None else alpha,
        'lora_dropout': arguments['dropout'],
        'total_step': 1,
        'fan_in_fan_out': _conv1d(names, entries),
    }


def _write_ia3(model: Any, names: Names, arguments: Any, entries: Any, part: Any) -> Written:
    del model, arguments, part
    tensors, fed = {}, []
    for module, arrays in _modules_of(names, entries).items():
        ((name, scale),) = arrays.items()
        if name == 'input':
            fed.append(module)
        tensors[f'{ROOT}{module}.ia3_l'] = scale[None] if name == 'input' else scale[:, None]
    common = _common(names, 'IA3', _modules_of(names, entries))
    # Each is looked for among the targets, as they are called there.
    short = {module.rpartition('.')[2] for module in fed}
    inside = short <= set(common['target_modules'])
    return tensors, {
        **common,
        'feedforward_modules': sorted(short if inside else fed),
        'fan_in_fan_out': _conv1d(names, entries),
    }


def _write_vblora(model: Any, names: Names, arguments: Any, adapter: Any, part: Any) -> Written:
    del model, part
    tensors = {'base_model.vblora_vector_bank': np.asarray(adapter['bank'])}
    modules = _modules_of(names, adapter['sites'])
    for module, arrays in modules.items():
        tensors[f'{ROOT}{module}.vblora_logits_A'] = arrays['logits_a']
        tensors[f'{ROOT}{module}.vblora_logits_B'] = arrays['logits_b'].swapaxes(0, 1)
    return tensors, {
        **_common(names, 'VBLORA', modules),
        'r': arguments['rank'],
        'num_vectors': arguments['num_vectors'],
        'vector_length': arguments['vector_length'],
        'topk': arguments['topk'],
        'vblora_dropout': arguments['dropout'],
        'fan_in_fan_out': _conv1d(names, adapter['sites']),
    }


def _write_format(model: Model, names: Names, arguments: Any, entries: Any, part: Any) -> Written:
    kinds = [kind for kind, form in FORMATS.items() if form.method == part.about.name]
    if part.about.name == 'randlora':
        raise ValueError(
            'a file of peft holds one pair of projections for all matrices, in an order of its own '
            'that randlora does not keep; merge it'
        )
    if not kinds:
        raise ValueError(
            f'{part.about.name} has no form in the files of peft; there are '
            f'{", ".join(sorted([*_WRITERS, *METHODS]))}'
        )
    form = FORMATS[kinds[0]]
    fields = {
        **_common(names, kinds[0], _modules_of(names, entries)),
        **form.fixed,
        **{field.theirs: field.save(arguments[field.ours]) for field in form.fields},
        **({} if form.save_more is None else form.save_more(arguments)),
    }
    if fields.get('alpha', 0) is None:
        fields['alpha'] = arguments['rank'] + arguments.get('hybrid_rank', 0)
    if _conv1d(names, entries):
        fields['fan_in_fan_out'] = True
    sign = -1 if form.negated(fields) else 1
    tensors = {}
    for module, arrays in _modules_of(names, entries).items():
        for name, value in arrays.items():
            tensor = form.tensors[name.removesuffix('_and_bias')]
            tensors[f'{ROOT}{module}{tensor.ending}'] = sign * tensor.save(value)
    if form.drawn is not None:
        modules = {path: [m for m, _ in _layers(names, path, {})] for path in entries}
        tensors |= form.drawn.save(arguments, entries, modules)
    if form.method == 'delora':
        for path, entry in entries.items():
            rows = lengths(model, path, entry.layout)
            for (module, _), each in zip(_layers(names, path, {}), rows, strict=True):
                tensors[f'{ROOT}{module}.delora_w_norm'] = each
    return tensors, fields


_WRITERS: dict[str, Callable[[Model, Names, Any, Any, Any], Written]] = {
    'lora': _write_lora,
    'dora': _write_lora,
    'adalora': _write_adalora,
    'ia3': _write_ia3,
    'vblora': _write_vblora,
    'prompt_tuning': prompts.write_prompt,
    'p_tuning': prompts.write_prompt,
    'prefix_tuning': prompts.write_prefix,
    'adaption_prompt': prompts.write_adaption,
}
