"""Prompts and prefixes of an encoder and a decoder in files of Hugging Face's peft."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax
from peftjax.interop.errors import CheckpointError
from tests.oracle.cases import load_base, stored
from tests.peft_folders import GOLDEN, WEIGHTS, changed

OWN = r'decoder/.*/self_attn/core'
METHODS = {
    'prompt': peftjax.prompt_tuning(num_virtual_tokens=3),
    'prompt by a network': peftjax.p_tuning(num_virtual_tokens=3),
    'prefix': peftjax.prefix_tuning(num_virtual_tokens=2, targets=OWN),
    'prefix by a network': peftjax.prefix_tuning(num_virtual_tokens=2, projection=3, targets=OWN),
}


def _base(name, scan=True):
    return load_base(GOLDEN / name / 'base', None, scan)


@pytest.mark.sampled
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize('name', ['t5_pair', 't5_three'])
@pytest.mark.parametrize('method', METHODS)
def test_what_is_written_computes_the_same_when_read(method, name, scan, tmp_path):
    model, transform = _base(name, scan), METHODS[method]
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1, size=0.5)
    peftjax.save_adapter(tmp_path, model, transform, adapter)
    again = peftjax.load_adapter(tmp_path, model)
    assert again.config['task_type'] == 'SEQ_2_SEQ_LM'
    # Two layers of an even number would share a part of the row.
    if 'prefix' in method:
        assert again.config['num_layers'] == 3
    inputs = stored(f'{name}/prefix_tuning').inputs
    np.testing.assert_allclose(
        peftjax.adapt(model, transform)(adapter, frozen, **inputs),
        peftjax.adapt(model, again.transform)(again.adapter, again.frozen, **inputs),
        atol=1e-5,
    )


def test_layers_that_share_a_part_of_the_row_are_read_with_it():
    case = stored('t5_pair/prefix_tuning')
    adapter = peftjax.load_adapter(case.folder, _base('t5_pair')).adapter
    (leaves,) = adapter['sites'].values()
    row = load_file(case.folder / WEIGHTS)['prompt_embeddings'].reshape(3, 4, 2, 4)
    for name, part in (('key', 0), ('value', 1)):
        for layer in range(2):
            np.testing.assert_array_equal(leaves[name][layer], row[:, part])


@pytest.mark.parametrize(
    ('source', 'fields', 'message'),
    [
        ('prompt_tuning', {'task_type': 'CAUSAL_LM'}, "is 'CAUSAL_LM', .* as 'SEQ_2_SEQ_LM'"),
        ('prompt_tuning', {'num_transformer_submodules': 3}, 'is 3, which is not'),
        ('prompt_tuning', {'num_transformer_submodules': 1}, '3 virtual tokens of 1'),
        ('prompt_tuning_encoder', {'num_transformer_submodules': 2}, 'of 2 submod'),
        ('prefix_tuning', {'num_transformer_submodules': 1}, 'train it with 2'),
        ('prefix_tuning', {'num_layers': 1}, 'is no prefix of 2 layers'),
        ('prefix_tuning', {'num_layers': 3}, 'is no prefix of 2 layers'),
        ('prefix_tuning', {'num_layers': '2'}, "num_layers is '2', no whole number"),
    ],
)
def test_files_that_mean_something_else_are_refused(source, fields, message, tmp_path):
    folder = changed(tmp_path, f't5_pair/{source}', fields)
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(folder, _base('t5_pair'))


def test_prompts_of_several_tasks_before_both_are_refused(tmp_path):
    fields = {'peft_type': 'MULTITASK_PROMPT_TUNING', 'num_tasks': 2, 'num_ranks': 1}
    tensors = {
        'prefix_task_cols': np.ones((2, 6, 1), np.float32),
        'prefix_task_rows': np.ones((2, 1, 8), np.float32),
    }
    folder = changed(tmp_path, 't5_pair/prompt_tuning', fields, tensors)
    with pytest.raises(CheckpointError, match='prompts for an encoder and for its decoder'):
        peftjax.load_adapter(folder, _base('t5_pair'), task=0)


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*core'), 'peft has prefixes at'),
        (
            peftjax.prefix_tuning(num_virtual_tokens=2, targets=OWN, shift_positions=False),
            'that shift positions only',
        ),
        (peftjax.prompt_tuning(num_virtual_tokens=1, places=(1,)), 'leave places out'),
    ],
)
def test_what_the_library_does_not_have_is_refused(transform, message, tmp_path):
    model = _base('t5_pair')
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=message):
        peftjax.save_adapter(tmp_path / 'new', model, transform, adapter)
