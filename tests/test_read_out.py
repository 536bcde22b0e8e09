"""Scores of given tokens: those of the logits, without the logits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
from peftjax.models import read_out
from tests.checkpoint_files import golden, task_of, write_folder
from tests.compiled import shapes

DECODERS = ['llama', 'llama_tied', 'gpt2', 'gemma2', 't5', 't5_untied', 'whisper']


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(read_out, 'CHUNK', 5)  # of 24 positions the last chunk is a short one


def _case(variant, tmp_path, **options):
    config, weights, inputs, _ = golden(variant)
    model = peftjax.load(write_folder(tmp_path, config, weights), task=task_of(variant), **options)
    logits = model.apply(model.params, **inputs)
    targets = np.random.default_rng(0).integers(0, logits.shape[-1], logits.shape[:2])
    return model, inputs, jnp.asarray(targets, jnp.int32)


@pytest.mark.sampled
@pytest.mark.parametrize('variant', DECODERS)
def test_scores_are_those_of_the_logits(variant, tmp_path, short_chunks):
    model, inputs, targets = _case(variant, tmp_path)
    targets = targets.at[0, 0].set(jnp.argmax(model.apply(model.params, **inputs)[0, 0]))
    logits = model.apply(model.params, **inputs)
    scores = jax.jit(model.apply)(model.params, **inputs, targets=targets)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(scores.losses, losses, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scores.correct, jnp.argmax(logits, -1) == targets)
    assert scores.correct[0, 0] and scores.losses.dtype == jnp.float32


@pytest.mark.sampled
@pytest.mark.parametrize(
    ('variant', 'tx'),
    [
        ('llama', peftjax.lora(rank=2, targets=(r'layers/.*_proj', r'lm_head'))),
        ('llama_tied', peftjax.lora(rank=2, targets=(r'layers/.*q_proj', r'embed_tokens'))),
        ('llama', peftjax.select(r'lm_head.*|.*norm.*')),
        ('llama', peftjax.prompt_tuning(num_virtual_tokens=2, targets=r'embed_tokens')),
        ('gpt2', peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'layers/.*core')),
        ('gemma2', peftjax.dora(rank=2, targets=r'layers/.*_proj')),
        ('t5_untied', peftjax.lora(rank=2, targets=(r'lm_head', r'decoder/.*/q'))),
    ],
    ids=lambda value: value if isinstance(value, str) else value.about.name,
)
def test_gradients_are_those_through_the_logits(variant, tx, tmp_path, short_chunks):
    model, inputs, targets = _case(variant, tmp_path)
    predict = peftjax.adapt(model, tx)
    fresh, frozen = tx.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)

    def by_scores(adapter):
        return predict(adapter, frozen, **inputs, targets=targets).losses.mean()

    def by_logits(adapter):
        logits = predict(adapter, frozen, **inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    found, expected = (jax.value_and_grad(loss)(adapter) for loss in (by_scores, by_logits))
    jax.tree.map(
        lambda mine, theirs: np.testing.assert_allclose(
            mine, theirs, rtol=0, atol=1e-5 * max(0.1, np.abs(theirs).max())
        ),
        found,
        expected,
    )


def test_all_logits_are_never_there(tmp_path):
    """The compiled gradient of 512 positions holds the logits of 128 at the most."""
    model, _, _ = _case('llama', tmp_path)
    tx = peftjax.lora(rank=2, targets=r'layers/.*_proj')
    adapter, frozen = tx.init(jax.random.key(0), model)
    predict = peftjax.adapt(model, tx)
    ids = jnp.ones((2, 512), jnp.int32)

    def loss(adapter, frozen, given):
        result = predict(adapter, frozen, input_ids=ids, **given)
        return jax.tree.leaves(result)[0].astype(jnp.float32).mean()

    found = {}
    for name, given in (('scores', {'targets': ids}), ('logits', {})):
        compiled = jax.jit(jax.grad(loss)).lower(adapter, frozen, given).compile()
        of_vocabulary = shapes(compiled, r'f32\[([\d,]+),32\]')  # which comes last
        found[name] = max(map(math.prod, of_vocabulary))
    assert found['logits'] >= 2 * 512 and found['scores'] <= 2 * 128


def test_targets_that_do_not_fit_are_refused(tmp_path):
    model, inputs, targets = _case('llama', tmp_path)
    with pytest.raises(ValueError, match='targets must be'):
        model.apply(model.params, **inputs, targets=targets[:, 1:])
    with pytest.raises(ValueError, match='a call with cache_length takes no targets'):
        model.apply(model.params, **inputs, targets=targets, cache_length=64)


def test_tokens_that_follow_a_cache_are_scored(tmp_path):
    model, inputs, targets = _case('llama', tmp_path)
    ids = inputs['input_ids']
    _, cache = model.apply(model.params, input_ids=ids, cache_length=32)
    logits, _ = model.apply(model.params, input_ids=ids, cache=cache)
    scores, after = model.apply(model.params, input_ids=ids, cache=cache, targets=targets)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(scores.losses, losses, rtol=1e-5, atol=1e-5)
    assert int(after.length) == 2 * ids.shape[1]
