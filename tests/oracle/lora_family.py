"""LoRA's relatives as Hugging Face's peft writes them: DoRA, AdaLoRA, trained biases and copies."""

import re
from collections.abc import Callable

import numpy as np

import peftjax
from peftjax.core import paths
from tests.oracle.cases import Case, Converted, Tensors
from tests.oracle.names import entry, kernel_of, module_of, modules_of, with_saved


def lora(case: Case) -> Converted:
    """Any set of targets, ranks by pattern, embeddings, and leaves trained whole beside them."""
    dense, tables = _modules(case)
    use_dora = case.config['use_dora']

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        adapter = {}
        for name, leaf in dense.items():
            arrays = {
                'a': tensors[f'{name}.lora_A.weight'].T,
                'b': tensors[f'{name}.lora_B.weight'].T,
            }
            if use_dora:
                arrays['magnitude'] = _magnitude(tensors, name)
            adapter[leaf] = entry(case, leaf, arrays)
        for name, leaf in tables.items():
            arrays = {
                'a': tensors[f'{name}.lora_embedding_A'].T,
                'b': tensors[f'{name}.lora_embedding_B'].T,
            }
            adapter[leaf] = entry(case, leaf, arrays)
        return adapter

    names = {**dense, **tables}
    method = peftjax.dora if use_dora else peftjax.lora
    transform = method(
        rank=case.config['r'],
        alpha=case.config['lora_alpha'],
        rslora=case.config['use_rslora'],
        rank_pattern=_by_leaf(case.config['rank_pattern'], names),
        alpha_pattern=_by_leaf(case.config['alpha_pattern'], names),
        targets=tuple(names.values()),
    )
    return _with_copies(case, Converted(transform, convert))


def adalora(case: Case) -> Converted:
    modules = {name: kernel_of(case, name) for name in modules_of(case, '.lora_E')}

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        return {
            leaf: entry(
                case,
                leaf,
                {
                    'p': tensors[f'{name}.lora_A'].T,
                    'lambda': tensors[f'{name}.lora_E'][:, 0],
                    'q': tensors[f'{name}.lora_B'].T,
                },
            )
            for name, leaf in modules.items()
        }

    transform = peftjax.adalora(
        init_rank=case.config['init_r'],
        alpha=case.config['lora_alpha'],
        targets=tuple(modules.values()),
    )
    weight = case.config['orth_reg_weight']
    return with_saved(
        case,
        Converted(
            transform,
            convert,
            penalty=lambda adapter: weight * peftjax.orthogonality(adapter, squared=False),
        ),
    )


def _modules(case: Case) -> tuple[dict[str, str], dict[str, str]]:
    """Names of the file's adapted modules and our leaves: dense ones, and embeddings."""
    dense = {name: kernel_of(case, name) for name in modules_of(case, '.lora_A.weight')}
    tables = {name: kernel_of(case, name) for name in modules_of(case, '.lora_embedding_A')}
    return dense, tables


def _magnitude(tensors: Tensors, name: str) -> np.ndarray:
    # A gradient is named after the parameter, a saved tensor is not.
    short = f'{name}.lora_magnitude_vector'
    return tensors[short] if short in tensors else tensors[f'{short}.weight']


def _by_leaf(pattern: dict[str, int], modules: dict[str, str]) -> dict[str, int]:
    """The file's patterns, which match the end of its module names, as our leaves'."""
    values = {}
    for name, leaf in modules.items():
        for key, value in pattern.items():
            if re.match(rf'(.*\.)?({key})$', name):
                values[leaf] = value
                break
    return values


def _with_copies(case: Case, ours: Converted) -> Converted:
    """`ours` behind the leaves that the file holds whole: heads, embeddings, biases."""
    # The embedding beside its own factors is the frozen one, written for convenience.
    whole = {name: _leaf(case, name) for name in case.gradients if 'lora_' not in name}
    if not whole:
        return ours

    def convert(tensors: Tensors) -> tuple[dict[str, np.ndarray], object]:
        copies = {}
        for name, leaf in whole.items():
            saved = name.replace('.modules_to_save.', '.')
            value = tensors[name] if name in tensors else tensors[saved]
            copies[leaf] = value.T if leaf.endswith('kernel') else value
        return copies, ours.convert(tensors)

    select = peftjax.select(tuple(whole.values()))
    return Converted(peftjax.chain(select, ours.transform), convert)


def _leaf(case: Case, name: str) -> str:
    module, _, kind = name.rpartition('.')
    module = module_of(case, re.sub(r'\.(base_layer|modules_to_save)$', '', module))
    candidates = ('kernel', 'embedding', 'scale') if kind == 'weight' else ('bias',)
    leaves = paths.flatten(case.model.params)
    return next(path for each in candidates if (path := f'{module}/{each}') in leaves)


def _delora(case: Case) -> Converted:
    modules = {name: kernel_of(case, name) for name in modules_of(case, '.delora_A')}

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        return {
            leaf: entry(
                case,
                leaf,
                {
                    'a': tensors[f'{name}.delora_A'].T,
                    'b': tensors[f'{name}.delora_B'].T,
                    'strength': tensors[f'{name}.delora_lambda'][0],
                },
            )
            for name, leaf in modules.items()
        }

    transform = peftjax.delora(rank=case.config['r'], targets=tuple(modules.values()))
    return with_saved(case, Converted(transform, convert))


def _vblora(case: Case) -> Converted:
    modules = {name: kernel_of(case, name) for name in modules_of(case, '.vblora_logits_A')}

    def convert(tensors: Tensors) -> dict[str, object]:
        (bank,) = (each for name, each in tensors.items() if 'vblora_vector_bank' in name)
        sites = {
            leaf: entry(
                case,
                leaf,
                {
                    'logits_a': tensors[f'{name}.vblora_logits_A'],
                    'logits_b': tensors[f'{name}.vblora_logits_B'].swapaxes(0, 1),
                },
            )
            for name, leaf in modules.items()
        }
        return {'bank': bank, 'sites': sites}

    transform = peftjax.vblora(
        rank=case.config['r'],
        num_vectors=case.config['num_vectors'],
        vector_length=case.config['vector_length'],
        topk=case.config['topk'],
        targets=tuple(modules.values()),
    )
    return with_saved(case, Converted(transform, convert))


CONVERTERS: dict[str, Callable[[Case], Converted]] = {
    **dict.fromkeys(
        (
            'lora',
            'lora_all_linear',
            'rslora',
            'dora',
            'dora_all_linear',
            'lora_bias_all',
            'lora_bias_lora_only',
            'lora_embed_saved',
            'lora_embedding',
            'lora_exclude',
            'lora_layers',
            'lora_modules_to_save',
            'lora_olora_converted',
            'lora_pissa_converted',
            'lora_rank_pattern',
            'lora_regex',
        ),
        lora,
    ),
    'adalora': adalora,
    'delora': _delora,
    'vblora': _vblora,
}
