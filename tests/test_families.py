"""Adapters that Hugging Face's peft wrote for every family; test_oracle has their logits."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax.interop.errors import CheckpointError
from tests.checkpoint_files import task_of
from tests.oracle.cases import GOLDEN, load_base

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_COPIES = re.compile(r'\.(original_module|modules_to_save\.default)\.')
FOLDERS = sorted(path.parent for path in GOLDEN.glob(f'tiny_*/*/{CONFIG}'))


def _base(variant):
    return load_base(GOLDEN / f'tiny_{variant}' / 'base', task_of(variant), True)


@pytest.mark.sampled
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize(
    'folder', FOLDERS, ids=lambda folder: f'{folder.parent.name}/{folder.name}'
)
def test_an_adapter_goes_out_as_it_came(folder, scan, tmp_path):
    variant = folder.parent.name.removeprefix('tiny_')
    model = load_base(folder.parent / 'base', task_of(variant), scan)
    loaded = peftjax.load_adapter(folder, model)
    peftjax.save_adapter(tmp_path / 'out', model, loaded.transform, loaded.adapter)
    theirs, ours = load_file(folder / WEIGHTS), load_file(tmp_path / 'out' / WEIGHTS)
    # With all biases the library writes those of a head three times.
    theirs = {n: v for n, v in theirs.items() if not n.endswith('.bias') or not _COPIES.search(n)}
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(value, ours[name], err_msg=name)
    said, saying = (json.loads((f / CONFIG).read_text()) for f in (folder, tmp_path / 'out'))
    saved = said.get('modules_to_save')
    head = 'score' if 'base_model.model.score.weight' in theirs else 'classifier'
    assert saying.get('modules_to_save') == ([head] if saved else saved)


@pytest.mark.parametrize('name', ['vit/lora', 'dinov2/dora'])
def test_files_of_earlier_transformers_are_read_too(name, tmp_path):
    variant = name.partition('/')[0]
    older = {
        r'vit\.layers\.': 'vit.encoder.layer.',
        r'attention\.(q)_proj': 'attention.attention.query',
        r'attention\.(v)_proj': 'attention.attention.value',
    }
    if variant == 'vit':
        older |= {r'mlp\.fc1': 'intermediate.dense'}
    folder = tmp_path / 'older'
    folder.mkdir()
    tensors = {}
    for tensor, value in load_file(GOLDEN / f'tiny_{name}' / WEIGHTS).items():
        for pattern, new in older.items():
            tensor = re.sub(pattern, new, tensor)
        tensors[tensor] = value
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((GOLDEN / f'tiny_{name}' / CONFIG).read_text())
    config['target_modules'] = [
        'query',
        'value',
        'intermediate.dense' if variant == 'vit' else 'fc2',
    ]
    (folder / CONFIG).write_text(json.dumps(config))
    model = _base(variant)
    expected = peftjax.load_adapter(GOLDEN / f'tiny_{name}', model).adapter
    found = peftjax.load_adapter(folder, model).adapter
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('variant', ['mistral', 'gemma3'])
def test_a_prefix_that_would_slide_out_of_sight_is_refused(variant, tmp_path):
    model = _base(variant)
    folder = tmp_path / 'prefix'
    folder.mkdir()
    save_file({'prompt_embeddings': np.zeros((3, 48), np.float32)}, folder / WEIGHTS)
    config = {'peft_type': 'PREFIX_TUNING', 'num_virtual_tokens': 3}
    (folder / CONFIG).write_text(json.dumps({**config, 'num_transformer_submodules': 1}))
    with pytest.raises(CheckpointError, match='see only a window of tokens'):
        peftjax.load_adapter(folder, model)
    transform = peftjax.prefix_tuning(num_virtual_tokens=3, targets=r'.*core')
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match='see only a window of tokens'):
        peftjax.save_adapter(tmp_path / 'out', model, transform, adapter)


def test_half_a_head_is_not_written(tmp_path):
    model = _base('roberta')
    transform = peftjax.chain(
        peftjax.select(r'classifier/out_proj/.*'), peftjax.lora(rank=2, targets=r'.*/query')
    )
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match='trains a head as one module'):
        peftjax.save_adapter(tmp_path / 'out', model, transform, adapter)


@pytest.mark.sampled
@pytest.mark.parametrize('variant', ['gemma2', 'gemma3'])
@pytest.mark.parametrize(
    'transform',
    [
        None,
        peftjax.lora(rank=2, targets=r'.*(q|v)_proj'),
        peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*core'),
    ],
    ids=['plain', 'lora', 'prefix'],
)
def test_layers_that_differ_write_the_same_with_a_cache(variant, transform, tmp_path):
    model = _base(variant)
    prompts = [[3, 4, 5, 6, 7, 8, 9, 10, 11], [5, 6, 7]]
    tx = peftjax.chain() if transform is None else transform
    fresh, frozen = tx.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1, size=0.5)
    predict = peftjax.adapt(model, tx)

    @jax.jit
    def run(text):
        if transform is None:
            return model.apply(model.params, input_ids=text)
        return predict(adapter, frozen, input_ids=text)

    generate = peftjax.generator(model, tx)
    written = generate(adapter, frozen, *peftjax.pad_left(prompts, 0), max_new_tokens=8)
    for prompt, row in zip(prompts, written.tolist(), strict=True):
        # Without a cache, one prompt at a time; what stands behind the last token is not seen.
        text = np.zeros((1, 17), np.int32)
        text[0, : len(prompt)] = prompt
        for place in range(len(prompt), len(prompt) + 8):
            logits = run(text)
            text[0, place] = np.argmax(logits[0, place - 1])
        assert row == text[0, len(prompt) : len(prompt) + 8].tolist()
