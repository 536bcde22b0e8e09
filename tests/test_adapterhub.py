"""Adapters of AdapterHub come in, and go out as they came; test_oracle has their logits."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax
from peftjax.interop.errors import CheckpointError
from tests.oracle.cases import GOLDEN, load_base, stored

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter.safetensors'
READABLE = [
    GOLDEN / 'adapters' / name
    for name in (
        *('bert/compacter', 'bert/seq_bn_gelu_ln', 'llama/compacter', 'llama/double_seq_bn'),
        *('llama/scaled_par_bn', 'llama/seq_bn', 'bert/unipelt', 'llama/lora_gating'),
        *('llama/mam', 'llama/unipelt', 'bert/prompt_after_bos', 'bert/prompt_tuning'),
        *('bert/seq_bn_inv', 'llama/dora_unscaled', 'llama/seq_bn_inv'),
        'llama/seq_bn_inv_flexible',
        *('gpt2/compacter', 'gpt2/double_seq_bn', 'gpt2/ia3', 'gpt2/lora', 'gpt2/lora_all'),
        *('gpt2/lora_k', 'gpt2/prefix_tuning_flat', 'gpt2/seq_bn_inv'),
        *('t5_pair/cross', 't5_pair/dora', 't5_pair/double_seq_bn', 't5_pair/ia3', 't5_pair/lora'),
        *('t5_pair/lora_all', 't5_pair/lora_gating'),
    )
]


def base_of(architecture, scan=True):
    return load_base(GOLDEN / architecture / 'base', None, scan)


def _name(folder):
    return folder.relative_to(GOLDEN / 'adapters').as_posix()


def _written_again(folder, model, loaded, target):
    """Writes what was read, with the same tensors; the two configs, theirs first."""
    peftjax.save_adapter(
        target, model, loaded.transform, loaded.adapter, form='adapterhub', name='a'
    )
    theirs, ours = load_file(folder / WEIGHTS), load_file(target / WEIGHTS)
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(value, ours[name], err_msg=name)
    return [json.loads((each / CONFIG).read_text()) for each in (folder, target)]


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize('folder', READABLE, ids=_name)
def test_a_file_is_written_as_it_was(folder, scan, tmp_path):
    model = base_of(folder.parent.name, scan)
    loaded = peftjax.load_adapter(folder, model)
    said, saying = _written_again(folder, model, loaded, tmp_path)
    # How a start was drawn is not kept, nor is alpha where a gate stands in its place.
    members = [each['config'].get('configs', [each['config']]) for each in (said, saying)]
    for theirs, ours in zip(*members, strict=True):
        same = {'init_weights', *(['alpha'] if theirs.get('use_gating') else [])}
        assert {k: v for k, v in theirs.items() if k not in same} == {
            k: v for k, v in ours.items() if k not in same
        }
    # A base of BERT is loaded without a head here. What it is called is not the adapter's.
    apart = {'config', 'model_name', *(['model_class'] if 'bert' in _name(folder) else [])}
    assert {k: v for k, v in said.items() if k not in apart} == {
        k: v for k, v in saying.items() if k not in apart
    }


METHODS = {
    'lora': peftjax.lora(rank=2, alpha=6, targets=r'layers/self_attn/[qkv]_proj'),
    'lora everywhere': peftjax.lora(rank=2, targets=r'layers/.*/([qkv]|up|down)_proj'),
    'rslora': peftjax.lora(rank=3, alpha=5, rslora=True, targets=r'layers/self_attn/[qv]_proj'),
    'ia3': peftjax.ia3(targets=(r'layers/self_attn/[kv]_proj', r'layers/mlp/down_proj')),
    'houlsby': peftjax.houlsby(size=4, targets=r'layers/(self_attn|mlp)_branch'),
    'pfeiffer': peftjax.pfeiffer(size=4, targets=r'layers/mlp_branch', activation='gelu_tanh'),
    'parallel': peftjax.parallel_adapter(size=4, targets=r'layers/mlp_branch', scale='learned'),
    'gated': peftjax.bottleneck(
        size=4, targets=r'layers/mlp_branch', gate=True, norm_before=True, activation='relu'
    ),
    'gated lora': peftjax.gated(peftjax.lora(rank=2, targets=r'layers/self_attn/[qv]_proj')),
    'prefix': peftjax.prefix_tuning(
        num_virtual_tokens=3, shift_positions=False, targets=r'.*core', gate=True
    ),
    'prefix by a network': peftjax.prefix_tuning(
        num_virtual_tokens=3, projection=5, shift_positions=False, targets=r'.*core'
    ),
    'compacter': peftjax.compacter(size=4, terms=2, targets=r'layers/(self_attn|mlp)_branch'),
    'dora': peftjax.dora(rank=2, targets=r'layers/self_attn/[qv]_proj'),
    'vera': peftjax.vera(rank=2, targets=r'layers/self_attn/q_proj'),
    'loreft': peftjax.loreft(rank=2, positions='f2+l1', targets=r'layers'),
    'loreft at one end': peftjax.loreft(rank=2, positions='l3', targets=r'layers'),
    'noreft': peftjax.noreft(rank=2, positions='f1+l2', targets=r'layers'),
    'noreft tied': peftjax.noreft(rank=2, positions='l2', tied=True, targets=r'layers'),
    'invertible': peftjax.chain(
        peftjax.invertible_adapter(size=3, targets=r'embed_tokens', inverse='norm'),
        peftjax.pfeiffer(size=4, targets=r'layers/mlp_branch'),
    ),
}


# On one matrix of query, key and value, and on an encoder and a decoder.
ELSEWHERE = {
    'gpt2': {
        'lora': peftjax.lora(rank=3, alpha=6, targets=r'.*/c_attn'),
        'lora everywhere': peftjax.lora(rank=3, targets=r'.*/(c_attn|mlp/c_fc|mlp/c_proj)'),
        'ia3': peftjax.ia3(targets=r'.*/(c_attn|c_fc)'),
        'houlsby': peftjax.houlsby(size=4, targets=r'layers.*/(attn|mlp)_branch'),
        'vera': peftjax.vera(rank=2, targets=r'.*/mlp/c_fc'),
        'loreft': peftjax.loreft(rank=2, positions='f2+l1', targets=r'layers(_\d)?'),
        'prefix': peftjax.prefix_tuning(
            num_virtual_tokens=3, projection=4, shift_positions=False, targets=r'.*core'
        ),
        'invertible': peftjax.chain(
            peftjax.invertible_adapter(size=3, targets='dropout', inverse='ln_f'),
            peftjax.pfeiffer(size=4, targets=r'layers.*/mlp_branch'),
        ),
    },
    't5_pair': {
        'cross': peftjax.houlsby(size=3, targets=r'.*_branch'),
        'pfeiffer': peftjax.pfeiffer(size=3, targets=r'.*ffn_branch'),
        'pfeiffer in the encoder': peftjax.pfeiffer(size=3, targets=r'encoder/.*ffn_branch'),
        'compacter': peftjax.compacter(size=4, terms=2, targets=r'.*(self_attn|ffn)_branch'),
        'lora': peftjax.lora(rank=2, targets=r'.*(attn/[qkv]|ffn/w[io])'),
        'ia3': peftjax.ia3(targets=r'.*(attn/[kv]|ffn/wi)'),
        'gated': peftjax.gated(peftjax.lora(rank=2, targets=r'.*attn/[qv]')),
    },
}


@pytest.mark.sampled
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize(
    ('base', 'name'), [(base, name) for base, methods in ELSEWHERE.items() for name in methods]
)
def test_what_is_written_for_other_families_computes_the_same(base, name, scan, tmp_path):
    model, transform = base_of(base, scan), ELSEWHERE[base][name]
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    peftjax.save_adapter(tmp_path, model, transform, adapter, form='adapterhub', name='mine')
    again = peftjax.load_adapter(tmp_path, model)
    case = stored(f'adapters/{base}/{"cross" if base == "t5_pair" else "lora"}')
    np.testing.assert_allclose(
        peftjax.adapt(model, transform)(adapter, frozen, **case.inputs),
        peftjax.adapt(model, again.transform)(again.adapter, again.frozen, **case.inputs),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ('base', 'transform', 'message'),
    [
        (
            't5_pair',
            peftjax.prefix_tuning(num_virtual_tokens=2, targets='.*core', shift_positions=False),
            'shifts their distances from queries',
        ),
        (
            't5_pair',
            peftjax.loreft(rank=2, positions='f1', targets='encoder/layers'),
            'counts the tokens of an encoder also where its ReFT edits',
        ),
        (
            't5_pair',
            peftjax.chain(
                peftjax.invertible_adapter(size=2, targets='embed'),
                peftjax.pfeiffer(size=2, targets=r'.*ffn_branch'),
            ),
            'an invertible adapter before the encoder only',
        ),
        (
            't5_pair',
            peftjax.pfeiffer(size=2, targets='encoder/.*ffn_branch|decoder/.*self_attn_branch'),
            'encoder.block.0.layer.0.* would be adapted too',
        ),
        (
            'gpt2',
            peftjax.gated(peftjax.lora(rank=2, targets='.*c_attn')),
            'a gate for each of query, key and value, not for all',
        ),
        (
            'gpt2',
            peftjax.lora(rank=2, rank_pattern={'.*c_fc/kernel': 3}, targets='.*(c_fc|mlp/c_proj)'),
            'has one rank for all matrices',
        ),
        (
            'gpt2',
            peftjax.lora(rank=3, rank_pattern={'.*c_fc/kernel': 2}, targets='.*(c_fc|c_attn)'),
            'a LoRA of rank 3 on one matrix of query, key and value, beside others of rank 2',
        ),
    ],
)
def test_what_has_no_form_for_other_families_is_refused(base, transform, message, tmp_path):
    model = base_of(base)
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=message):
        peftjax.save_adapter(tmp_path / 'out', model, transform, adapter, form='adapterhub')


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('gpt2/lora', lambda c: c.update(attn_matrices=['q']), 'for q of rank 2'),
        ('gpt2/lora', lambda c: c.update(attn_matrices=['x']), 'not q, k or v'),
        ('gpt2/ia3', lambda c: c.update(attn_matrices=['q', 'k', 'v']), 'scales for qkv'),
        ('gpt2/lora', lambda c: c.update(use_dora=True), 'on one matrix of query, key and value'),
        ('t5_pair/cross', lambda c: c.update(cross_adapter=1), 'cross_adapter is 1'),
        ('t5_pair/cross', lambda c: c.update(inv_adapter='nice'), 'before the encoder only'),
    ],
)
def test_files_of_other_families_that_mean_something_else_are_refused(
    name, change, message, tmp_path
):
    folder = shutil.copytree(GOLDEN / 'adapters' / name, tmp_path / 'copy')
    config = json.loads((folder / CONFIG).read_text())
    change(config['config'])
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(folder, base_of(name.partition('/')[0]))


@pytest.mark.parametrize('architecture', ['prefix_tuning', 'reft'])
def test_files_of_t5_that_count_tokens_elsewhere_are_refused(architecture, tmp_path):
    folder = shutil.copytree(GOLDEN / 'adapters/t5_pair/lora', tmp_path / 'copy')
    config = json.loads((folder / CONFIG).read_text())
    config['config']['architecture'] = architecture
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match='AdapterHub (puts a prefix|counts the tokens)'):
        peftjax.load_adapter(folder, base_of('t5_pair'))


@pytest.mark.sampled
@pytest.mark.parametrize('name', METHODS)
def test_what_is_written_is_read_again(name, tmp_path):
    model, transform = base_of('llama'), METHODS[name]
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    peftjax.save_adapter(tmp_path, model, transform, adapter, form='adapterhub', name='mine')
    again = peftjax.load_adapter(tmp_path, model, reft='noreft' if 'noreft' in name else None)
    if 'loreft' not in name:  # whose projection is written as the orthonormal one it stands for
        jax.tree.map(np.testing.assert_array_equal, adapter, again.adapter)
    inputs = stored('adapters/llama/seq_bn').inputs
    np.testing.assert_allclose(
        peftjax.adapt(model, transform)(adapter, frozen, **inputs),
        peftjax.adapt(model, again.transform)(again.adapter, again.frozen, **inputs),
        atol=1e-5,
    )
