"""Every way in which a checkpoint folder can be wrong gives one clear error."""

import json
import re
import struct

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from peftjax.interop.checkpoints.load import load
from peftjax.interop.errors import CheckpointError
from peftjax.models.llama_config import parse_llama
from tests.checkpoint_files import (
    VARIANTS,
    cuts,
    golden,
    load_abstract,
    rewrite,
    task_of,
    write_folder,
)


@pytest.fixture(params=['llama', 'bert', 'gpt2'])
def folder(request, tmp_path):
    config, weights, _, _ = golden(request.param)
    return write_folder(tmp_path / request.param, config, weights)


def test_one_error_lists_every_tensor_that_does_not_fit(folder):
    names = sorted(load_file(folder / 'model.safetensors'))
    missing, misshapen, wrong_dtype = names[0], names[1], names[2]

    def damage(weights):
        weights.pop(missing)
        weights[misshapen] = np.zeros((7, 3), np.float32)
        weights[wrong_dtype] = np.zeros(weights[wrong_dtype].shape, np.int32)
        weights['surprise.weight'] = np.zeros((2, 2), np.float16)

    rewrite(folder, damage)
    with pytest.raises(CheckpointError) as caught:
        load_abstract(folder)
    message, short = (
        str(caught.value),
        lambda name: re.sub(r'^(bert|model|transformer)\.', '', name),
    )
    assert re.search(rf'missing: {short(missing)} \[[\d, ]+\] for \S+', message)
    assert f'wrong: {short(misshapen)} is F32 [7, 3], ' in message
    assert f'wrong: {short(wrong_dtype)} is I32 ' in message
    assert 'unknown: surprise.weight F16 [2, 2]' in message
    assert '4 tensors' in message


def test_an_unknown_tensor_may_be_ignored_by_name(folder):
    rewrite(folder, lambda weights: weights.update(extra=np.zeros(2, np.float32)))
    with pytest.raises(CheckpointError, match='unknown: extra'):
        load_abstract(folder)
    load_abstract(folder, ignore=('extra',))


@pytest.mark.parametrize(
    ('variant', 'fields', 'message'),
    [
        ('llama', {'model_type': 'mamba'}, "model_type 'mamba' is not supported: only bert"),
        ('llama', {'hidden_act': 'mish'}, "hidden_act 'mish' is not supported"),
        (
            'llama',
            {'rope_scaling': {'type': 'yarn', 'factor': 2.0}, 'rope_parameters': None},
            "'yarn'",
        ),
        ('llama', {'rope_parameters': {'rope_type': 'linear'}}, "'linear' needs factor"),
        ('llama', {'rope_parameters': {'rope_theta': 1e4, 'beta_fast': 32}}, 'beta_fast: unknown'),
        ('llama', {'quantization_config': {'bits': 4}}, 'quantization_config: .* not supported'),
        ('llama', {'hidden_size': '16'}, "hidden_size must be an integer, got '16'"),
        ('llama', {'intermediate_size': None}, 'intermediate_size: None is not of type int'),
        ('llama', {'vocab_size': 0}, 'vocab_size: 0 is out of range'),
        ('llama', {'logit_scale': 0.5}, r"logit_scale: unknown; .* ignore=\('logit_scale',\)"),
        ('llama', {'num_hidden_layers': 4000}, '4000 layers, but the files hold 21 tensors'),
        ('qwen2', {'layer_types': ['full_attention', 'sliding_attention']}, 'must be the same'),
        (
            'qwen2',
            {
                'use_sliding_window': True,
                'sliding_window': 4,
                'max_window_layers': 1,
                'layer_types': None,
            },
            'must be the same',
        ),
        ('bert', {'position_embedding_type': 'relative_key'}, 'position_embedding_type'),
        ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights: False is not supported'),
        ('gpt2', {'n_head': 3}, 'n_embd 16 is not a multiple of n_head 3'),
        ('bert', {'is_decoder': True}, 'is_decoder: True is not supported'),
        ('bert', {'num_attention_heads': 3}, 'not a multiple of num_attention_heads 3'),
        # Infinite in float32, where every normalised row would be 0; and the root of a negative.
        ('bert', {'layer_norm_eps': 1e300}, r'layer_norm_eps: 1e\+300 is out of range'),
        ('llama', {'rms_norm_eps': -1e-5}, 'rms_norm_eps: -1e-05 is out of range'),
        ('bert', {'hidden_dropout_prob': 1.5}, 'hidden_dropout_prob: 1.5 is out of range, 0 to 1'),
        ('bert', {'hidden_dropout_prob': 2}, 'hidden_dropout_prob: 2 is out of range, 0 to 1'),
        (
            'llama',
            {'rope_parameters': {'rope_theta': 0.0}},
            'rope: theta is 0.0; write a number from 1e-18 to 1e18',
        ),
        (
            'llama',
            {'rope_parameters': {'rope_type': 'linear', 'factor': 0.0}},
            'rope: factor is 0.0; write a number from 1e-18 to 1e18',
        ),
        (
            'llama',
            {
                'rope_parameters': {
                    'rope_type': 'llama3',
                    'factor': 8.0,
                    'low_freq_factor': 4.0,
                    'high_freq_factor': 4.0,
                    'original_max_position_embeddings': 16,
                }
            },
            'low_freq_factor 4.0 must be below high_freq_factor 4.0',
        ),
    ],
)
def test_configs_that_mean_something_else_are_refused_by_name(variant, fields, message, tmp_path):
    config, weights, _, _ = golden(variant)
    folder = write_folder(tmp_path / variant, config | fields, weights)
    with pytest.raises(ValueError, match=message):
        load_abstract(folder)


def test_both_spellings_of_rope_mean_the_same():
    config, _, _, _ = golden('llama3_rope')
    scaling = dict(config.pop('rope_parameters'))
    old = {'rope_theta': scaling.pop('rope_theta'), 'rope_scaling': scaling}
    assert parse_llama(config | old) == parse_llama(golden('llama3_rope')[0])


@pytest.mark.parametrize(
    ('variant', 'options', 'message'),
    [
        ('bert', {'task': 'causal_lm'}, "task 'causal_lm' does not suit a BERT encoder"),
        ('bert', {'num_labels': 2}, 'num_labels needs a task'),
        ('bert', {'pooling': 'max'}, "pooling 'max' is unknown"),
        ('llama', {'task': 'seq2seq_lm'}, "'seq2seq_lm' does not suit a Llama decoder"),
        ('llama', {'task': 'causal_lm', 'num_labels': 2}, 'does not suit a Llama decoder'),
        ('llama', {'task': 'classification'}, "'classification' needs num_labels"),
        ('llama', {'pooling': 'mean'}, 'for a Llama decoder, whose head reads the last token'),
        ('gpt2', {'pooling': 'mean'}, 'for a GPT-2 decoder, whose head reads the last token'),
        ('llama', {'remat': 'some'}, "remat 'some' is unknown"),
    ],
)
def test_options_that_do_not_suit_are_refused(variant, options, message, tmp_path):
    config, weights, _, _ = golden(variant)
    folder = write_folder(tmp_path, config, weights)
    with pytest.raises(ValueError, match=message):
        load(folder, abstract=True, **options)


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('config.json', None, 'config.json does not exist'),
        ('config.json', b'{"model_type": ', 'config.json is not JSON'),
        ('config.json', b'[1]', 'holds a JSON list, expected an object'),
        ('config.json', b'\xff\xfe', 'config.json is not JSON'),
        ('model.safetensors', b'', r'model.safetensors is corrupt or truncated \(0 bytes\)'),
        ('model.safetensors', struct.pack('<Q', 1 << 40) + b'{}', 'header too large'),
        ('model.safetensors', struct.pack('<Q', 2) + b'{]', 'corrupt or truncated'),
    ],
)
def test_damaged_files_are_named(file, content, message, folder):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_abstract(folder)


def test_weights_that_are_not_there_are_named_and_shapes_do_without(folder):
    shapes = load_abstract(folder)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(CheckpointError, match='holds neither model.safetensors nor'):
        load(folder, task=task_of(folder.name), num_labels=3 if task_of(folder.name) else None)
    labels = 3 if task_of(folder.name) else None
    again = load(folder, task=task_of(folder.name), abstract=True, num_labels=labels)
    assert jax.tree.structure(again.params) == jax.tree.structure(shapes.params)


def test_a_tensor_beyond_the_end_of_the_file_is_refused(folder):
    header = {'x': {'dtype': 'F32', 'shape': [1000], 'data_offsets': [0, 4000]}}
    text = json.dumps(header).encode()
    (folder / 'model.safetensors').write_bytes(struct.pack('<Q', len(text)) + text + bytes(40))
    with pytest.raises(CheckpointError, match=r'model.safetensors is corrupt or truncated'):
        load_abstract(folder)


@pytest.mark.parametrize(
    'outside', ['../model.safetensors', '/etc/passwd', 'a/b.safetensors', 'weights.bin', 3]
)
def test_an_index_may_only_name_safetensors_files_beside_it(outside, tmp_path):
    config, weights, _, _ = golden('llama')
    folder = write_folder(tmp_path / 'llama', config, weights, shards=2)
    index = folder / 'model.safetensors.index.json'
    claims = json.loads(index.read_text())
    claims['weight_map']['model.norm.weight'] = outside
    index.write_text(json.dumps(claims))
    with pytest.raises(CheckpointError, match='only .safetensors files next to the index'):
        load_abstract(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: c.update({'ghost': 'model-00001-of-00002.safetensors'}),
            'no shard holds: ghost',
        ),
        (
            lambda c: c.update({'model.norm.weight': 'model-00002-of-00002.safetensors'}),
            'model.norm.weight is in model-00001-of-00002.safetensors, not in model-00002',
        ),
        (lambda c: c.update({'ghost': 'model-00003-of-00002.safetensors'}), 'does not exist'),
        (lambda c: c.clear(), 'has no weight_map'),
    ],
)
def test_an_index_must_agree_with_its_shards(change, message, tmp_path):
    config, weights, _, _ = golden('llama')
    folder = write_folder(tmp_path / 'llama', config, weights, shards=2)
    index = folder / 'model.safetensors.index.json'
    claims = json.loads(index.read_text())
    change(claims['weight_map'])
    index.write_text(json.dumps(claims))
    with pytest.raises(CheckpointError, match=message):
        load_abstract(folder)


def test_safetensors_cut_anywhere_are_refused(folder):
    path = folder / 'model.safetensors'
    whole = path.read_bytes()
    for cut in cuts(len(whole), 8 + struct.unpack('<Q', whole[:8])[0]):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r'model\.safetensors is corrupt or truncated'):
            load_abstract(folder)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**7) | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(
    max_examples=80, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), variant=st.sampled_from(VARIANTS))
def test_any_config_is_read_or_refused(data, variant, tmp_path_factory):
    config, weights, _, _ = golden(variant)
    for name in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        config[name] = data.draw(_JSON)
    folder = write_folder(tmp_path_factory.mktemp('fuzz') / variant, config, weights)
    try:
        load_abstract(folder)
    except ValueError as error:
        assert str(error)
