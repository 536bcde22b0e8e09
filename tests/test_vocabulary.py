"""New tokens, and heads apart from a tied embedding."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax.core import paths
from peftjax.interop.errors import CheckpointError
from tests.checkpoint_files import golden, write_folder
from tests.oracle.cases import GOLDEN, arrays

CASES = (
    *('llama/whole', 'llama/rows_and_tables', 'llama/rows_of_both'),
    *('llama_tied/whole', 'llama_tied/rows', 'llama_tied/rows_and_tables'),
)
# Those whose tensors need no others.
ROUND = ('llama/whole', 'llama_tied/whole', 'llama_tied/rows', 'llama/rows_of_both')
DECODERS = ('llama_tied', 'gpt2', 'gemma3')
CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


def _base(variant):
    return GOLDEN / f'tiny_{variant}' / 'base'


def _run(model, loaded, inputs):
    predict = peftjax.adapt(model, loaded.transform)
    return np.asarray(jax.jit(predict)(loaded.adapter, loaded.frozen, **inputs))


def _close(found, expected, mask):
    found, expected = found[mask == 1], expected[mask == 1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize('case', CASES)
def test_adapters_with_new_tokens_equal_peft(case, scan):
    folder = GOLDEN / 'new_tokens' / f'tiny_{case}'
    model = peftjax.load(_base(case.partition('/')[0]), vocab_size=36, scan=scan)
    inputs = arrays(folder / 'inputs.npz')
    found = _run(model, peftjax.load_adapter(folder, model), inputs)
    expected = arrays(folder / 'logits.npz')['logits']
    assert found.shape == expected.shape == (2, 12, 36)
    _close(found, expected, inputs['attention_mask'])


@pytest.mark.parametrize('case', ROUND)
def test_adapters_with_new_tokens_go_out_with_the_tensors_that_they_came_with(case, tmp_path):
    folder = GOLDEN / 'new_tokens' / f'tiny_{case}'
    model = peftjax.load(_base(case.partition('/')[0]), vocab_size=36)
    loaded = peftjax.load_adapter(folder, model)
    peftjax.save_adapter(tmp_path / 'out', model, loaded.transform, loaded.adapter)
    theirs, ours = (load_file(each / WEIGHTS) for each in (folder, tmp_path / 'out'))
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(value, ours[name], err_msg=name)
    saved = json.loads((tmp_path / 'out' / CONFIG).read_text())['modules_to_save']
    assert saved == (['embed_tokens', 'lm_head'] if case.endswith('whole') else None)


def test_a_base_without_the_new_tokens_refuses_their_adapter():
    model = peftjax.load(_base('llama'))
    with pytest.raises(CheckpointError, match=r'embed_tokens/embedding is \(36, 16\), needs'):
        peftjax.load_adapter(GOLDEN / 'new_tokens/tiny_llama/whole', model)


@pytest.mark.sampled
@pytest.mark.parametrize('variant', ['llama', 'llama_tied', 'bert', 'gpt2', 't5', 't5_untied'])
@settings(max_examples=8, deadline=None)
@given(more=st.integers(0, 9))
def test_new_rows_are_the_mean_of_the_old_ones(variant, more):
    base = _base(variant)
    before, after = (
        paths.flatten(peftjax.load(base, task=None, vocab_size=size).params)
        for size in (None, 32 + more)
    )
    changed = {path for path in before if before[path].shape != after[path].shape}
    assert bool(changed) == bool(more)
    for path, old in before.items():
        new = np.asarray(after[path])
        rows, wanted = (new.T, np.asarray(old).T) if path == 'lm_head/kernel' else (new, old)
        np.testing.assert_array_equal(rows[: len(wanted)], wanted)
        mean = np.asarray(wanted, np.float64).mean(0)
        for row in rows[len(wanted) :]:
            np.testing.assert_allclose(row, mean, rtol=1e-6, atol=1e-7)


def test_the_mean_of_a_bfloat16_file_is_taken_in_float32(tmp_path):
    config, weights, _, _ = golden('llama')
    narrow = {name: np.asarray(value, 'bfloat16') for name, value in weights.items()}
    folder = write_folder(tmp_path, config, narrow)
    found = peftjax.load(folder, vocab_size=33).params['embed_tokens']['embedding'][32]
    exact = narrow['model.embed_tokens.weight'].astype(np.float64).mean(0)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_tokens_are_cut_when_asked_to_alone():
    base = _base('llama')
    with pytest.raises(ValueError, match='would drop the last 2 of 32 tokens; write cut_voc'):
        peftjax.load(base, vocab_size=30)
    cut = peftjax.load(base, vocab_size=30, cut_vocabulary=True).params
    whole = peftjax.load(base).params
    table, head = cut['embed_tokens']['embedding'], cut['lm_head']['kernel']
    np.testing.assert_array_equal(table, whole['embed_tokens']['embedding'][:30])
    np.testing.assert_array_equal(head, whole['lm_head']['kernel'][:, :30])


@pytest.mark.parametrize(
    ('variant', 'options', 'message'),
    [
        ('vit', {'vocab_size': 40}, 'is for models of text, but this is a ViTConfig'),
        ('llama', {'vocab_size': 0}, 'vocab_size 0 is not a number of tokens'),
        ('llama', {'vocab_size': 36.0}, 'vocab_size 36.0 is not a number of tokens'),
        ('llama', {'vocab_size': 2**40}, 'is not a number of tokens'),
        ('llama', {'tie': False}, 'tie=False does not suit this LlamaConfig'),
        ('llama', {'tie': True}, 'tie=True does not suit this LlamaConfig'),
        ('bert', {'tie': False}, 'tie=False does not suit this BertConfig'),
        ('whisper', {'tie': False}, 'tie=False does not suit this WhisperConfig'),
    ],
)
def test_what_no_vocabulary_can_be_is_refused(variant, options, message):
    with pytest.raises(ValueError, match=message):
        peftjax.load(_base(variant), abstract=True, **options)


@pytest.mark.sampled
@pytest.mark.parametrize('variant', [*DECODERS, 't5'])
def test_an_untied_head_starts_as_a_copy_and_is_read_again(variant, tmp_path):
    base = _base(variant)
    tied, apart = peftjax.load(base), peftjax.load(base, tie=False)
    assert peftjax.load(base, tie=True, abstract=True).config.tie_word_embeddings
    inputs = arrays(base / 'inputs.npz')
    np.testing.assert_array_equal(
        tied.apply(tied.params, **inputs), apart.apply(apart.params, **inputs)
    )
    params = paths.replace(apart.params, {'lm_head/kernel': 2 * apart.params['lm_head']['kernel']})
    peftjax.save_checkpoint(tmp_path, apart, params, base)
    again = peftjax.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    assert again.config == apart.config


@pytest.mark.parametrize('variant', DECODERS)
def test_a_larger_vocabulary_is_saved_and_read_again(variant, tmp_path):
    base = _base(variant)
    model = peftjax.load(base, vocab_size=40)
    peftjax.save_checkpoint(tmp_path, model, model.params, base)
    again = peftjax.load(tmp_path)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize('variant', DECODERS)
def test_a_lora_on_a_tied_head_needs_it_untied(variant, tmp_path):
    base = _base(variant)
    apart = peftjax.load(base, tie=False)
    transform = peftjax.lora(rank=2, targets=r'lm_head/kernel')
    adapter = peftjax.testing.perturb(transform.init(jax.random.key(0), apart)[0], seed=1)
    peftjax.save_adapter(tmp_path, apart, transform, adapter)
    with pytest.raises(CheckpointError, match=r'head .* is tied to its embedding; .*tie=False'):
        peftjax.load_adapter(tmp_path, peftjax.load(base))
    inputs = arrays(base / 'inputs.npz')
    found = _run(apart, peftjax.load_adapter(tmp_path, apart), inputs)
    predict = peftjax.adapt(apart, transform)
    expected = predict(adapter, transform.freeze(apart, adapter), **inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_copies_of_a_tied_table_that_differ_are_refused(tmp_path):
    folder = GOLDEN / 'new_tokens/tiny_llama_tied/whole'
    tensors = load_file(folder / WEIGHTS)
    tensors['base_model.model.lm_head.weight'] = 2 * tensors['base_model.model.lm_head.weight']
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text((folder / CONFIG).read_text())
    with pytest.raises(CheckpointError, match=r'where it is looked up .*tie=False'):
        peftjax.load_adapter(tmp_path, peftjax.load(_base('llama_tied'), vocab_size=36))
    apart = peftjax.load(_base('llama_tied'), vocab_size=36, tie=False)
    adapter = peftjax.load_adapter(tmp_path, apart).adapter
    found = next(part for part in adapter if part.method == 'select')
    np.testing.assert_array_equal(found['lm_head/kernel'].T, 2 * found['embed_tokens/embedding'])


def test_tables_around_rows_are_left_out_where_the_model_has_them():
    """What trains then is the rows alone, as in the library."""
    folder = GOLDEN / 'new_tokens/tiny_llama_tied/rows_and_tables'
    tensors = load_file(folder / WEIGHTS)
    name = 'base_model.model.model.embed_tokens.token_adapter.base_layer.weight'
    model = peftjax.load(_base('llama_tied'), vocab_size=36)
    same = model.replace(
        params=paths.replace(model.params, {'embed_tokens/embedding': tensors[name]})
    )
    inputs = arrays(folder / 'inputs.npz')
    expected = arrays(folder / 'logits.npz')['logits']
    for one, methods in ((model, ['select', 'lora']), (same, ['trainable_tokens', 'lora'])):
        loaded = peftjax.load_adapter(folder, one)
        about = loaded.transform.about
        assert about is not None
        assert [part.about.name for part in about.arguments['transforms']] == methods
        _close(_run(one, loaded, inputs), expected, inputs['attention_mask'])


def test_rows_of_a_tied_base_train_both_of_an_untied_model(tmp_path):
    """The library puts them where the head reads too."""
    folder = GOLDEN / 'new_tokens/tiny_llama_tied/rows'
    apart = peftjax.load(_base('llama_tied'), vocab_size=36, tie=False)
    loaded = peftjax.load_adapter(folder, apart)
    inputs = arrays(folder / 'inputs.npz')
    _close(
        _run(apart, loaded, inputs),
        arrays(folder / 'logits.npz')['logits'],
        inputs['attention_mask'],
    )
    peftjax.save_adapter(tmp_path, apart, loaded.transform, loaded.adapter)
    theirs, ours = (load_file(each / WEIGHTS) for each in (folder, tmp_path))
    assert set(theirs) == set(ours)
    rows = peftjax.trainable_tokens([32, 33], targets=r'embed_tokens/embedding')
    adapter, _ = rows.init(jax.random.key(0), apart)
    with pytest.raises(ValueError, match='that the checkpoint ties are the same in peft'):
        peftjax.save_adapter(tmp_path / 'out', apart, rows, adapter)


def test_tokens_of_a_head_are_its_columns():
    model = peftjax.load(_base('llama'), vocab_size=36)
    tx = peftjax.trainable_tokens([33, 2], targets=(r'embed_tokens/embedding', r'lm_head/kernel'))
    adapter, frozen = tx.init(jax.random.key(0), model)
    before = paths.flatten(model.params)
    np.testing.assert_array_equal(
        adapter['lm_head/kernel'], before['lm_head/kernel'].T[np.array([33, 2])]
    )
    adapter = peftjax.testing.perturb(adapter, seed=1)
    merged = paths.flatten(tx.merge(adapter, frozen))
    for path, table in (('embed_tokens/embedding', lambda x: x), ('lm_head/kernel', np.transpose)):
        new, old = table(np.asarray(merged[path])), table(np.asarray(before[path]))
        np.testing.assert_array_equal(new[[33, 2]], adapter[path])
        kept = np.setdiff1d(np.arange(36), [33, 2])
        np.testing.assert_array_equal(new[kept], old[kept])
    ids = np.asarray([[33, 2, 5]], np.int32)
    found = peftjax.adapt(model, tx)(adapter, frozen, input_ids=ids)
    whole = model.apply(tx.merge(adapter, frozen), input_ids=ids)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='token 40 is beyond the 36 tokens of'):
        peftjax.trainable_tokens([40], targets=r'lm_head/kernel').init(jax.random.key(0), model)
