"""Heads on decoders: which token they read, and what goes with them."""

import contextlib
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peftjax
from peftjax.core import paths
from peftjax.models.gemma import GemmaClassifier
from peftjax.models.gpt2 import GPT2Classifier
from peftjax.models.llama import LlamaClassifier
from peftjax.models.registry import FAMILIES
from tests.checkpoint_files import golden, write_folder, write_gguf
from tests.linen import applied
from tests.oracle.cases import GOLDEN, arrays
from tests.test_imports import ROOT
from tests.tiny_models import GEMMA, GPT, IDS, LLAMA, initialised, run

CLASSIFIERS = [(LlamaClassifier, LLAMA), (GemmaClassifier, GEMMA), (GPT2Classifier, GPT)]
NAMES = ['llama', 'gemma', 'gpt2']
FULL = np.ones((2, 9), np.int32)


def _base(variant):
    return GOLDEN / f'tiny_{variant}' / 'base'


@settings(max_examples=10)
@given(st.data())
def test_the_last_token_is_that_of_the_mask(data):
    """Whatever stands at the places that the mask hides, and wherever these are."""
    module = LlamaClassifier(LLAMA, outputs=3)
    variables = initialised(module)
    length = data.draw(st.integers(1, 9))
    before = data.draw(st.integers(0, 9 - length))
    hidden = data.draw(st.lists(st.integers(0, 49), min_size=9, max_size=9))
    ids = np.asarray([hidden], np.int32)
    ids[0, before : before + length] = IDS[0, :length]
    mask = np.zeros((1, 9), np.int32)
    mask[0, before : before + length] = 1
    places = np.maximum(np.arange(9)[None] - before, 0)
    found = run(module, variables, input_ids=ids, attention_mask=mask, position_ids=places)
    alone = applied(module, variables, input_ids=IDS[:1, :length])
    np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize(('family', 'config'), CLASSIFIERS, ids=NAMES)
def test_a_head_on_the_text_is_the_head_on_its_last_token(family, config):
    each, last = family(config, outputs=3, each_token=True), family(config, outputs=3)
    params = dict(initialised(last)['params'])
    head = {'kernel': params['score']['kernel'], 'bias': jnp.zeros(3)}
    tokens = {**params, family.head_of_tokens: head}
    mask = FULL.copy()
    mask[0, 6:], mask[1, :2] = 0, 0
    inputs = {'input_ids': IDS, 'attention_mask': mask}
    found = run(last, {'params': params}, **inputs)
    logits = run(each, {'params': tokens}, **inputs)
    assert logits.shape == (2, 9, 3)
    np.testing.assert_allclose(found, [logits[0, 5], logits[1, 8]], rtol=1e-5, atol=1e-6)
    everywhere = run(last, {'params': params}, input_ids=IDS)
    ones = run(last, {'params': params}, input_ids=IDS, attention_mask=FULL[:1])
    np.testing.assert_allclose(everywhere, ones, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(('family', 'config'), CLASSIFIERS, ids=NAMES)
def test_packed_texts_go_with_a_head_on_tokens_alone(family, config):
    segments = np.array([[1] * 4 + [2] * 5])
    with pytest.raises(ValueError, match=r'segment_ids \(1, 9\) pack several texts into a row'):
        jax.eval_shape(
            lambda: applied(
                family(config, outputs=3),
                initialised(family(config, outputs=3)),
                input_ids=IDS[:1],
                segment_ids=segments,
            )
        )
    module = family(config, outputs=3, each_token=True)
    variables = initialised(module)
    separate = [run(module, variables, input_ids=IDS[:1, a:b])[0] for a, b in ((0, 4), (4, 9))]
    packed = run(module, variables, input_ids=IDS[:1], segment_ids=segments)
    np.testing.assert_allclose(packed[0], np.concatenate(separate), atol=1e-5)


@pytest.mark.parametrize(('family', 'config'), CLASSIFIERS, ids=NAMES)
def test_a_row_of_padding_gives_numbers_and_slopes(family, config):
    module = family(config, outputs=2)
    variables = initialised(module)
    mask = FULL.copy()
    mask[1] = 0

    def loss(variables):
        return run(module, variables, input_ids=IDS, attention_mask=mask).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((value, gradient)))


def test_dropout_stands_in_front_of_a_head_on_tokens():
    for rate in (None, 0.0, 0.9):
        config = dataclasses.replace(LLAMA, classifier_dropout=rate)
        module = LlamaClassifier(config, outputs=2, each_token=True)
        variables = initialised(module)
        noisy = applied(
            module,
            variables,
            input_ids=IDS,
            deterministic=False,
            rngs={'dropout': jax.random.key(0)},
        )
        quiet = run(module, variables, input_ids=IDS)
        assert np.allclose(noisy, quiet, atol=1e-5) == (rate == 0.0)


@pytest.mark.sampled
@pytest.mark.parametrize('variant', ['llama_score', 'gpt2_score', 'gemma2_score'])
@pytest.mark.parametrize(
    'transform',
    [
        peftjax.prompt_tuning(num_virtual_tokens=2),
        peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*/core'),
        peftjax.lora(rank=2, targets=r'score/kernel'),
        peftjax.houlsby(size=3, targets=r'.*branch'),
    ],
    ids=['prompt', 'prefix', 'head', 'houlsby'],
)
def test_padding_changes_nothing_that_a_method_makes_of_a_text(variant, transform):
    model = peftjax.load(_base(variant), task='classification')
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    predict = jax.jit(peftjax.adapt(model, transform))
    ids, mask = np.zeros((2, 8), np.int32), np.zeros((2, 8), np.int32)
    ids[0, :5], mask[0, :5] = IDS[0, :5] % 32, 1
    ids[1, :5], mask[1, :5] = IDS[0, :5] % 32, 1
    ids[1, 5:] = 7
    alone = predict(adapter, frozen, input_ids=ids[:1, :5], attention_mask=mask[:1, :5])
    padded = predict(adapter, frozen, input_ids=ids, attention_mask=mask)
    np.testing.assert_allclose(padded, np.repeat(alone, 2, axis=0), rtol=1e-5, atol=1e-5)
    plain = model.apply(model.params, input_ids=ids[:1, :5])
    assert not np.allclose(plain, alone, atol=1e-3)


@pytest.mark.sampled
@pytest.mark.parametrize('task', ['classification', 'regression', 'token_classification'])
@pytest.mark.parametrize('variant', ['llama', 'llama_tied', 'gpt2', 'gemma3'])
def test_a_new_head_takes_the_place_of_the_words(variant, task, tmp_path):
    base = _base(variant)
    count = None if task == 'regression' else 4
    model = peftjax.load(base, task=task, num_labels=count)
    other = peftjax.load(base, task=task, num_labels=count, key=jax.random.key(1))
    heads = {path for path in paths.flatten(model.params) if path in model.fresh}
    assert heads and all(path.startswith(('score/', 'classifier/')) for path in heads)
    assert not any('lm_head' in path for path in paths.flatten(model.params))
    same = {
        path: bool((leaf == paths.flatten(other.params)[path]).all())
        for path, leaf in paths.flatten(model.params).items()
    }
    assert {path for path in same if not same[path]} == {p for p in heads if p.endswith('kernel')}
    told = pytest.warns(UserWarning, match='with peftjax alone: ')
    with told if model.only_here else contextlib.nullcontext():
        peftjax.save_checkpoint(tmp_path, model, model.params, base)
    again = peftjax.load(tmp_path, task=task)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    with pytest.raises(peftjax.CheckpointError, match=r'unknown: (score|classifier)\.'):
        peftjax.load(tmp_path, abstract=True)


def test_a_classifier_writes_no_text_and_says_so():
    model = peftjax.load(_base('llama_score'), task='classification')
    assert 'targets' not in model.takes and 'cache' not in model.takes
    with pytest.raises(ValueError, match=r"no argument with the roles \['cache'"):
        peftjax.generator(model)(
            (), peftjax.chain().freeze(model, ()), jnp.ones((1, 3), int), max_new_tokens=2
        )
    inputs = peftjax.abstract_inputs(model, 4, 16)
    assert set(inputs) == {'input_ids', 'attention_mask'}


def test_labels_of_the_source_stay_and_a_head_of_another_size_has_new_ones(tmp_path):
    config, weights, _, _ = golden('llama_score')
    named = {'id2label': {'0': 'no', '1': 'yes', '2': 'both'}, 'pad_token_id': 5}
    base = write_folder(tmp_path / 'base', config | named, weights)
    model = peftjax.load(base, task='classification')
    peftjax.save_checkpoint(tmp_path / 'out', model, model.params, base)
    assert peftjax.load(tmp_path / 'out', task='classification').config == model.config
    text = (tmp_path / 'out/config.json').read_text()
    assert '"yes"' in text and '"pad_token_id": 5' in text
    backbone = {name: value for name, value in weights.items() if 'score' not in name}
    bare = write_folder(tmp_path / 'bare', config | named, backbone)
    model = peftjax.load(bare, task='classification', num_labels=2)
    peftjax.save_checkpoint(tmp_path / 'new', model, model.params, bare)
    text = (tmp_path / 'new/config.json').read_text()
    assert '"LABEL_1"' in text and '"both"' not in text


def test_roberta_without_a_pooler_says_so_where_one_is_asked_for(tmp_path):
    config, weights, inputs, _ = golden('roberta')
    held = {n: v for n, v in weights.items() if not n.startswith('classifier')}
    held |= {'lm_head.bias': np.zeros(32, np.float32)}
    assert not any('pooler' in name for name in held)
    base = write_folder(tmp_path, config, held)
    model = peftjax.load(base)
    output = model.apply(model.params, **inputs)
    with pytest.raises(ValueError, match=r"no pooled output.*pooling='mean'"):
        _ = output.pooler_output
    mean = peftjax.load(base, pooling='mean')
    pooled = mean.apply(mean.params, **inputs)
    np.testing.assert_allclose(output.last_hidden_state, pooled.last_hidden_state, atol=1e-6)
    assert pooled.pooler_output.shape == (2, 16)
    classified = peftjax.load(base, task='classification', num_labels=2)
    assert 'classifier/dense/kernel' in classified.fresh


def test_every_head_equals_the_one_of_another_form_of_the_model():
    inputs = arrays(_base('llama_score') / 'inputs.npz')
    forms: list[dict[str, Any]] = [{}, {'scan': False}, {'remat': 'full'}, {'dtype': jnp.bfloat16}]
    found = [
        peftjax.load(_base('llama_score'), task='classification', **options) for options in forms
    ]
    logits = [model.apply(model.params, **inputs).astype(jnp.float32) for model in found]
    for other, error in zip(logits[1:], (1e-5, 1e-5, 0.2), strict=True):
        np.testing.assert_allclose(other, logits[0], atol=error)


def test_the_page_about_models_lists_every_family():
    rows = [
        line.split('|')[1:4]
        for line in (ROOT / 'docs/models.md').read_text().splitlines()
        if line.startswith('| `') and 'model_type' not in line
    ]
    named = [name for cells in rows for name in re.findall(r'`([\w-]+)`', cells[0])]
    assert sorted(named) == sorted(FAMILIES)
    heads = ''
    for cells in rows:
        heads = heads if 'the same' in cells[2] else cells[2]
        for name in re.findall(r'`([\w-]+)`', cells[0]):
            meant = set(re.findall(r'`(\w+)`', heads))
            assert {bool(meant)} == {bool(FAMILIES[name].heads)}, name


def test_a_token_classifier_of_gemma_3_is_for_this_library_alone(tmp_path):
    model = peftjax.load(_base('gemma3'), task='token_classification', num_labels=2)
    tx = peftjax.lora(rank=2, targets=r'.*q_proj')
    adapter, _ = tx.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match='transformers has no token classifier of Gemma 3'):
        peftjax.save_adapter(tmp_path, model, tx, adapter)
    assert not peftjax.load(_base('gemma3'), task='classification', num_labels=2).only_here


@pytest.mark.parametrize('variant', ['llama', 'llama_tied'])
def test_a_gguf_file_takes_a_new_head(variant, tmp_path):
    config, weights, inputs, _ = golden(variant)
    if variant == 'llama_tied':
        weights.pop('lm_head.weight', None)
    file = write_gguf(tmp_path / 'base.gguf', config, weights)
    found = [
        peftjax.load(source, task='classification', num_labels=2)
        for source in (file, write_folder(tmp_path / 'base', config, weights))
    ]
    assert found[0].fresh == ('score/kernel',)
    logits = [model.apply(model.params, **inputs) for model in found]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)
