"""LoRA and DoRA in files of peft at heads, embeddings, convolutions and wide ranks."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax
from tests.oracle.cases import GOLDEN, load_base
from tests.peft_folders import IDS, WEIGHTS, assert_read_back, base, changed, saved

IMAGES = {'pixel_values': np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)}
_PREFIX = peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*/core')
_ADAPTION = peftjax.adaption_prompt(num_virtual_tokens=2, targets=r'.*/core')
_PROMPT = peftjax.prompt_tuning(num_virtual_tokens=2, targets='embed_tokens')


def test_a_frozen_head_beside_its_factors_is_not_trained():
    loaded = peftjax.load_adapter(GOLDEN / 'llama' / 'lora_lm_head', base('llama', True))
    assert set(loaded.adapter) == {'lm_head/kernel', 'layers/self_attn/q_proj/kernel'}
    assert set(loaded.adapter['lm_head/kernel']) == {'a', 'b'}


@pytest.mark.parametrize('source', ['lora_lm_head', 'dora_embedding'])
def test_another_weight_beside_its_factors_is_refused(source, tmp_path):
    tensors = load_file(GOLDEN / 'llama' / source / WEIGHTS)
    ((name, value),) = ((n, v) for n, v in tensors.items() if 'base_layer' in n)
    folder = changed(tmp_path, f'llama/{source}', tensors={name: value + 1e-3})
    with pytest.raises(
        peftjax.CheckpointError, match='base_layer.weight is not the .* another base'
    ):
        peftjax.load_adapter(folder, base('llama', True))


def test_what_is_adapted_and_trained_whole_is_refused(tmp_path):
    model = base('llama', True)
    lora = peftjax.lora(rank=2, targets='lm_head')
    transform = peftjax.chain(peftjax.select(r'lm_head/.*'), lora)
    with pytest.raises(ValueError, match=r"\['lm_head'\] are trained whole and adapted too"):
        saved(tmp_path, model, transform)


@pytest.mark.parametrize('make', [peftjax.lora, peftjax.dora])
def test_embeddings_come_back(make, tmp_path):
    model = base('llama', True)
    transform = make(rank=4, targets=(r'embed_tokens', r'.*/q_proj'))
    adapter, frozen, _, _ = saved(tmp_path, model, transform)
    assert_read_back(tmp_path, model, transform, adapter, frozen, IDS)


@pytest.mark.parametrize('make', [peftjax.lora, peftjax.dora])
def test_a_convolution_has_the_axes_of_its_window(make, tmp_path):
    model = load_base(GOLDEN / 'tiny_vit' / 'base', 'classification', True)
    transform = make(rank=5, alpha=7, targets='embeddings/patch_embeddings')
    adapter, frozen, _, tensors = saved(tmp_path, model, transform)
    shapes = {name.partition('.lora_')[2]: value.shape for name, value in tensors.items()}
    expected = {'A.weight': (5, 3, 4, 4), 'B.weight': (16, 5, 1, 1)}
    if make is peftjax.dora:
        expected['magnitude_vector'] = (1, 16, 1, 1)
    assert shapes == expected
    assert_read_back(tmp_path, model, transform, adapter, frozen, IMAGES)


def test_the_factors_of_a_convolution_in_time_make_its_change(tmp_path):
    model = load_base(GOLDEN / 'tiny_whisper' / 'base', None, True)
    transform = peftjax.lora(rank=2, alpha=6, targets=r'encoder/conv[12]')
    adapter, frozen, config, tensors = saved(tmp_path, model, transform)
    assert config['task_type'] is None
    merged = transform.merge(adapter, frozen)
    weights = load_file(GOLDEN / 'tiny_whisper' / 'base' / 'model.safetensors')
    for name in ('conv1', 'conv2'):
        a, b = (tensors[f'base_model.model.model.encoder.{name}.lora_{c}.weight'] for c in 'AB')
        assert a.ndim == 3 and b.shape == (16, 2, 1)
        change = 3 * np.einsum('or,rik->oik', b[..., 0], a)
        expected = weights[f'model.encoder.{name}.weight'] + change
        np.testing.assert_allclose(merged['encoder'][name]['kernel'].T, expected, atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'shape', 'told'),
    [('A', (2, 48), r'needs \(2, 3, 4, 4\)'), ('B', (16, 2), r'needs \(16, 2, 1, 1\)')],
)
def test_factors_of_a_convolution_that_are_matrices_are_refused(name, shape, told, tmp_path):
    place = f'base_model.model.vit.embeddings.patch_embeddings.projection.lora_{name}.weight'
    tensors = {place: np.ones(shape, np.float32)}
    folder = changed(tmp_path, 'tiny_vit/dora_convolution', tensors=tensors)
    model = load_base(GOLDEN / 'tiny_vit' / 'base', 'classification', True)
    with pytest.raises(peftjax.CheckpointError, match=told):
        peftjax.load_adapter(folder, model)


def test_a_rank_above_the_width_comes_back(tmp_path):
    model = base('llama', False)
    transform = peftjax.lora(rank=40, targets=r'.*/k_proj')
    adapter, frozen, _, _ = saved(tmp_path, model, transform)
    assert_read_back(tmp_path, model, transform, adapter, frozen, IDS)


QUERY = r'.*/query'


@pytest.mark.parametrize(
    ('transform', 'task', 'whole'),
    [
        (peftjax.lora(rank=3, targets=(QUERY, r'classifier')), None, None),
        (peftjax.lora(rank=3, targets=QUERY), None, None),
        (
            peftjax.chain(peftjax.select(r'classifier/.*'), peftjax.lora(rank=3, targets=QUERY)),
            'SEQ_CLS',
            ['classifier'],
        ),
    ],
    ids=['adapted', 'frozen', 'trained'],
)
def test_the_task_type_is_of_a_classifier_where_its_head_is_in_the_file(
    transform, task, whole, tmp_path
):
    model = base('bert', True)
    adapter, frozen, config, _ = saved(tmp_path, model, transform)
    assert config['task_type'] == task and config['modules_to_save'] == whole
    assert_read_back(tmp_path, model, transform, adapter, frozen, IDS)


@pytest.mark.parametrize('how', ['fresh', 'asked'])
def test_a_head_that_others_look_for_is_written_as_it_stands(how, tmp_path):
    model = base('bert', True)
    head = ('classifier/kernel', 'classifier/bias')
    asked = {}
    if how == 'fresh':
        model = model.replace(fresh=head)
    else:
        asked['task_type'] = 'SEQ_CLS'
    transform = peftjax.lora(rank=3, targets=QUERY)
    _, _, config, tensors = saved(tmp_path, model, transform, **asked)
    assert config['task_type'] == 'SEQ_CLS' and config['modules_to_save'] == ['classifier']
    kernel = tensors['base_model.model.classifier.weight']
    np.testing.assert_array_equal(kernel, np.asarray(model.params['classifier']['kernel']).T)
    adapted = peftjax.lora(rank=3, targets=(QUERY, 'classifier'))
    with pytest.raises(ValueError, match='are adapted, and a file of peft cannot hold'):
        saved(tmp_path / 'other', model, adapted, **asked)


@pytest.mark.parametrize(
    ('transform', 'family', 'told'),
    [
        (peftjax.loha(rank=2, targets='embeddings/patch_embeddings'), 'tiny_vit', 'a convolution'),
        (peftjax.lokr(rank=2, targets='embeddings/patch_embeddings'), 'tiny_vit', 'a convolution'),
        (peftjax.ia3(targets=r'encoder/conv1'), 'tiny_whisper', 'a convolution'),
        (peftjax.loha(rank=2, targets='embed_tokens'), 'tiny_llama', 'an embedding'),
        (peftjax.adalora(init_rank=2, targets='embed_tokens'), 'tiny_llama', 'an embedding'),
        (peftjax.lora(rank=2, targets=r'.*embed_positions'), 'tiny_whisper', 'read by its rows'),
        (_PREFIX, 'tiny_vit', 'of images'),
        (_PROMPT, 'tiny_llama_score', 'the last position'),
        (_ADAPTION, 'tiny_gemma2', 'Mistral'),
        (_ADAPTION, 'tiny_qwen2', 'Mistral'),
    ],
    ids=str,
)
def test_places_where_peft_lacks_the_method_are_refused(transform, family, told, tmp_path):
    task = 'classification' if family in ('tiny_vit', 'tiny_llama_score') else None
    model = load_base(GOLDEN / family / 'base', task, True)
    with pytest.raises(ValueError, match=told):
        saved(tmp_path, model, transform)
    assert not (tmp_path / 'new').exists()


def test_a_loha_of_a_convolution_is_refused(tmp_path):
    fields = {'peft_type': 'LOHA', 'alpha': 4}
    place = 'base_model.model.vit.embeddings.patch_embeddings.projection.hada_'
    names = list(load_file(GOLDEN / 'tiny_vit' / 'dora_convolution' / WEIGHTS))
    shapes = {'w1_a': (16, 2), 'w1_b': (2, 48), 'w2_a': (16, 2), 'w2_b': (2, 48)}
    tensors = {f'{place}{name}': np.ones(shape, np.float32) for name, shape in shapes.items()}
    folder = changed(
        tmp_path, 'tiny_vit/dora_convolution', fields, {**dict.fromkeys(names), **tensors}
    )
    model = load_base(GOLDEN / 'tiny_vit' / 'base', 'classification', True)
    with pytest.raises(peftjax.CheckpointError, match='is a convolution'):
        peftjax.load_adapter(folder, model)


def test_the_scales_of_a_convolution_come_back(tmp_path):
    model = load_base(GOLDEN / 'tiny_vit' / 'base', 'classification', True)
    transform = peftjax.ia3(targets='embeddings/patch_embeddings')
    adapter, frozen, _, tensors = saved(tmp_path, model, transform)
    assert [value.shape for value in tensors.values()] == [(1, 16, 1, 1)]
    assert_read_back(tmp_path, model, transform, adapter, frozen, IMAGES)


@pytest.mark.parametrize('make', [peftjax.loha, peftjax.lokr, peftjax.hra])
def test_methods_that_peft_lacks_for_the_layers_of_gpt2_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match='is a Conv1D of transformers'):
        saved(tmp_path, base('gpt2', True), make(rank=2, targets=r'.*/c_attn'))


@pytest.mark.parametrize('family', ['tiny_vit', 'tiny_dinov2', 'tiny_roberta'])
def test_norms_by_any_name_are_a_file_of_norms(family, tmp_path):
    model = load_base(GOLDEN / family / 'base', 'classification', True)
    transform = peftjax.select(r'layers/(.*/)?layer_?norm\w*/(scale|bias)')
    adapter, _, config, tensors = saved(tmp_path, model, transform)
    assert config['peft_type'] == 'LN_TUNING'
    assert all('.ln_tuning_layers.' in name for name in tensors)
    loaded = peftjax.load_adapter(tmp_path / 'new', model)
    for ours, theirs in zip(jax.tree.leaves(loaded.adapter), jax.tree.leaves(adapter), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ('family', 'leaves'),
    [
        ('tiny_vit', r'embeddings/(cls_token|position_embeddings)'),
        ('tiny_llama', r'.*q_proj/kernel'),
    ],
)
def test_parameters_beside_modules_are_no_module_to_save(family, leaves, tmp_path):
    task = 'classification' if family == 'tiny_vit' else None
    model = load_base(GOLDEN / family / 'base', task, True)
    kept = peftjax.select(leaves)
    targets = r'.*/(value|v_proj)'
    transform = peftjax.chain(kept, peftjax.lora(rank=2, targets=targets))
    if family == 'tiny_llama':
        _, _, config, _ = saved(tmp_path, model, transform)
        assert config['modules_to_save'] == ['q_proj']
        return
    with pytest.raises(ValueError, match='holds vit.embeddings whole or not at all'):
        saved(tmp_path, model, transform)


def test_biases_of_a_head_with_two_values_are_refused(tmp_path):
    name = 'base_model.model.classifier.modules_to_save.default.dense.bias'
    tensors = {name: np.ones(16, np.float32)}
    folder = changed(tmp_path, 'tiny_roberta/lora_bias_all', tensors=tensors)
    model = load_base(GOLDEN / 'tiny_roberta' / 'base', 'classification', True)
    with pytest.raises(peftjax.CheckpointError, match='other values under its shorter name'):
        peftjax.load_adapter(folder, model)
