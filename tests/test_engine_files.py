"""The files for serving engines hold what the engines' loaders say they take.

The rules are written down here from the documentation that docs/engines.md names; no engine runs.
"""

import json
import pathlib
import re
import shlex

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax
from peftjax import cli
from peftjax.cli.commands import COMMANDS, load_command
from peftjax.cli.parser import Parser
from tests.oracle.cases import GOLDEN
from tests.test_imports import ROOT

LLAMA = GOLDEN / 'llama' / 'base'
BASE = load_file(LLAMA / 'model.safetensors')
LINEAR = {f'{name}_proj' for name in ('q', 'k', 'v', 'o', 'gate', 'up', 'down')}
MODULES = LINEAR | {'embed_tokens', 'lm_head'}
PAGE = (ROOT / 'docs/engines.md').read_text()
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_FACTOR = re.compile(
    r'base_model\.model\.(?P<module>.+)\.(lora_(?P<dense>[AB])\.weight|lora_embedding_(?P<rows>[AB]))'
)


def vllm_refuses(folder: pathlib.Path, max_lora_rank: int = 16) -> list[str]:
    """What keeps vLLM from loading an adapter, or from computing with it what peft does."""
    config = json.loads((folder / 'adapter_config.json').read_text())
    said = [f'no {name}' for name in ('r', 'lora_alpha', 'target_modules') if name not in config]
    said += [name for name in ('modules_to_save', 'use_dora') if config.get(name)]
    said += ['bias'] if config.get('bias', 'none') != 'none' else []
    said += ['rank'] if config.get('r', 0) > max_lora_rank else []
    # These are not read.
    said += [name for name in ('rank_pattern', 'alpha_pattern') if config.get(name)]
    factors: dict[str, dict[str, np.ndarray]] = {}
    for name, value in load_file(folder / 'adapter_model.safetensors').items():
        found = _FACTOR.fullmatch(name)
        if found is None or found['module'].split('.')[-1] not in MODULES:
            said.append(name)
            continue
        factors.setdefault(found['module'], {})[found['dense'] or found['rows']] = value
        if found['rows']:
            factors[found['module']]['rows'] = np.ones(())
    for module, pair in factors.items():
        out, inside = BASE[f'{module}.weight'].shape
        if 'rows' in pair:  # An embedding is [tokens, width]: A reads tokens.
            out, inside = inside, out
        shapes = [pair[side].shape if side in pair else None for side in 'AB']
        if shapes != [(config['r'], inside), (out, config['r'])]:
            said.append(f'{module} {shapes}')
    return said


def sglang_refuses(folder: pathlib.Path) -> list[str]:
    """What of `target_modules` SGLang does not take."""
    targets = json.loads((folder / 'adapter_config.json').read_text())['target_modules']
    if isinstance(targets, str):
        return [targets]
    return sorted({each.split('.')[-1] for each in targets} - MODULES)


def _written(folder, scan=True, **arguments):
    model = peftjax.load(LLAMA, scan=scan)
    tx = peftjax.lora(**arguments)
    adapter, frozen = tx.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(adapter, 0, 0.3)
    peftjax.save_adapter(folder, model, tx, adapter)
    return model, tx, adapter, frozen


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize(
    'arguments',
    [
        {'rank': 8, 'targets': r'.*/[qv]_proj/kernel'},
        {'rank': 4, 'alpha': 3.0, 'rslora': True, 'dropout': 0.1, 'targets': 'all-linear'},
        {'rank': 2, 'targets': [r'.*/o_proj/kernel', 'lm_head/kernel']},
        {'rank': 2, 'targets': r'embed_tokens/embedding'},
    ],
)
def test_a_lora_of_one_rank_is_taken_as_it_is(arguments, scan, tmp_path):
    _written(tmp_path, scan, **arguments)
    assert not vllm_refuses(tmp_path) and not sglang_refuses(tmp_path)


def test_an_adapter_of_some_layers_is_taken_as_it_is(tmp_path):
    _written(tmp_path, False, rank=2, targets=r'layers_1/self_attn/q_proj/kernel')
    assert not vllm_refuses(tmp_path) and not sglang_refuses(tmp_path)


@pytest.mark.parametrize(
    ('name', 'refused'),
    [
        ('lora', set()),
        ('rslora', set()),
        ('dora', {'use_dora'}),
        ('lora_modules_to_save', {'modules_to_save'}),
        ('lora_rank_pattern', {'rank_pattern', 'alpha_pattern'}),
    ],
)
def test_what_is_not_taken_is_what_the_page_names(name, refused):
    said = vllm_refuses(GOLDEN / 'llama' / name)
    fields = {each for each in said if '.' not in each}
    assert fields == refused and bool(said) == bool(refused)
    assert all(f'`{each}`' in PAGE for each in refused)


def test_ranks_are_those_of_the_page(tmp_path):
    _written(tmp_path, rank=24, targets=r'.*/q_proj/kernel')
    assert vllm_refuses(tmp_path) == ['rank'] and not vllm_refuses(tmp_path, 32)
    assert ', '.join(map(str, RANKS)) in PAGE


def test_patterns_become_a_lora_of_one_rank_that_computes_the_same(tmp_path):
    model, tx, adapter, frozen = _written(
        tmp_path / 'mixed',
        rank=4,
        alpha=6,
        targets=r'.*/[qkv]_proj/kernel',
        rank_pattern={r'.*k_proj/kernel': 2},
        alpha_pattern={r'.*v_proj/kernel': 1},
    )
    assert set(vllm_refuses(tmp_path / 'mixed')) >= {'rank_pattern', 'alpha_pattern'}
    line = ['merge', str(LLAMA), str(tmp_path / 'mixed'), str(tmp_path / 'one'), '--rank', '8']
    assert cli.main(line) == 0
    assert not vllm_refuses(tmp_path / 'one') and not sglang_refuses(tmp_path / 'one')
    one = peftjax.load_adapter(tmp_path / 'one', model)
    ids = {'input_ids': np.arange(12).reshape(2, 6)}
    np.testing.assert_allclose(
        peftjax.adapt(model, one.transform)(one.adapter, one.frozen, **ids),
        peftjax.adapt(model, tx)(adapter, frozen, **ids),
        atol=2e-5,
    )


def test_a_gguf_adapter_has_the_header_and_the_pairs_that_llama_cpp_looks_for(tmp_path):
    line = ['export', str(LLAMA), str(GOLDEN / 'llama' / 'rslora'), str(tmp_path / 'a.gguf')]
    assert cli.main(line) == 0
    reader = gguf.GGUFReader(tmp_path / 'a.gguf')
    fields = {key: field.contents() for key, field in reader.fields.items()}
    expected = {
        'general.type': 'adapter',
        'general.architecture': 'llama',
        'adapter.type': 'lora',
    }
    assert expected.items() <= fields.items() and fields['adapter.lora.alpha'] > 0
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    for name in {name.rpartition('.lora_')[0] for name in shapes}:
        a, b = shapes[f'{name}.lora_a'], shapes[f'{name}.lora_b']
        assert a[1] == b[0] and re.fullmatch(r'blk\.\d+\.\w+\.weight', name)


def test_the_commands_of_the_page_are_read():
    lines = re.findall(r'^peftjax .*$', PAGE, re.MULTILINE)
    lines += re.findall(r'`(peftjax merge [^`]*)`', PAGE)
    assert len(lines) >= 5
    for line in lines:
        _, name, *rest = shlex.split(line, comments=True)
        parser = Parser(COMMANDS[name])
        load_command(COMMANDS[name]).add_arguments(parser)
        parser.read(rest)
