"""A GGUF adapter, added to the GGUF base as llama.cpp adds it, is the adapted model."""

import gguf
import jax
import numpy as np
import pytest

import peftjax
from tests.checkpoint_files import golden, write_folder, write_gguf

METHODS = {
    'attention': lambda layers: peftjax.lora(
        rank=3, alpha=6, targets=rf'{layers}/self_attn/[qkvo]_proj'
    ),
    'everywhere': lambda layers: peftjax.lora(rank=2, targets=(rf'{layers}/.*_proj', r'lm_head')),
    'scales that differ': lambda layers: peftjax.lora(
        rank=4,
        alpha=8,
        rslora=True,
        rank_pattern={r'.*k_proj/kernel': 2},
        alpha_pattern={r'.*v_proj/kernel': 3},
        targets=rf'{layers}/self_attn/[qkv]_proj',
    ),
}


@pytest.mark.sampled
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('family', ['llama', 'qwen2'])
def test_the_base_with_the_adapter_added_is_the_adapted_model(family, name, scan, tmp_path):
    config, weights, inputs, _ = golden(family)
    model = peftjax.load(write_folder(tmp_path / 'base', config, weights), scan=scan)
    transform = METHODS[name](r'layers' if scan else r'layers_\d+')
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1, size=0.3)
    peftjax.export_gguf(tmp_path / 'a.gguf', model, transform, adapter, name='mine')

    reader = gguf.GGUFReader(tmp_path / 'a.gguf')
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields['general.architecture'] == family and fields['general.type'] == 'adapter'
    assert fields['adapter.type'] == 'lora'
    arrays = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    used = set()

    def add(tensor, values):
        a, b = arrays.get(f'{tensor}.lora_a'), arrays.get(f'{tensor}.lora_b')
        if a is None:
            return values
        used.update({f'{tensor}.lora_a', f'{tensor}.lora_b'})
        return values + np.float32(fields['adapter.lora.alpha'] / len(a)) * (b @ a)

    merged = write_gguf(tmp_path / 'merged.gguf', config, weights, family, change=add)
    assert used == set(arrays) and used
    other = peftjax.load(merged)
    found = jax.jit(other.apply)(other.params, **inputs)
    expected = peftjax.adapt(model, transform)(adapter, frozen, **inputs)
    tokens = inputs['attention_mask'] == 1
    np.testing.assert_allclose(found[tokens], expected[tokens], atol=1e-4)


@pytest.mark.parametrize(
    ('variant', 'transform', 'name', 'message'),
    [
        ('llama', peftjax.dora(rank=2, targets=r'.*q_proj'), 'a.gguf', 'write plain lora'),
        ('llama', peftjax.lora(rank=2, targets=r'embed_tokens'), 'a.gguf', 'is a lookup'),
        ('llama', peftjax.lora(rank=2, targets=r'.*q_proj'), 'a.bin', 'not end with .gguf'),
        ('gpt2', peftjax.lora(rank=2, targets=r'.*c_proj'), 'a.gguf', 'with a GPT2Config'),
    ],
)
def test_what_llama_cpp_does_not_have_is_refused(variant, transform, name, message, tmp_path):
    config, weights, _, _ = golden(variant)
    model = peftjax.load(write_folder(tmp_path / 'base', config, weights))
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=message):
        peftjax.export_gguf(tmp_path / name, model, transform, adapter)
    assert not list(tmp_path.glob('*.gguf*')) and not list(tmp_path.glob('.*'))


def test_an_adapter_of_another_method_is_refused(tmp_path):
    config, weights, _, _ = golden('llama')
    model = peftjax.load(write_folder(tmp_path / 'base', config, weights))
    lora, dora = (make(rank=2, targets=r'.*q_proj') for make in (peftjax.lora, peftjax.dora))
    adapter, _ = dora.init(jax.random.key(0), model)
    with pytest.raises(peftjax.AdapterError, match='lora expects .* found an entry of dora'):
        peftjax.export_gguf(tmp_path / 'a.gguf', model, lora, adapter)
