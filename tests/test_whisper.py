"""Whisper however it is built, what it writes of what it hears, and methods on it."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.core import paths
from peftjax.models.stack import REMAT_POLICIES, unstack_layers
from peftjax.models.whisper import Whisper
from peftjax.models.whisper_config import WhisperConfig, parse_whisper
from tests.checkpoint_files import golden, write_folder
from tests.linen import applied
from tests.oracle.cases import GOLDEN

CONFIG = WhisperConfig(
    vocab_size=32,
    d_model=16,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=24,
    decoder_layers=3,
    decoder_attention_heads=2,
    decoder_ffn_dim=20,
    num_mel_bins=6,
    max_source_positions=11,
    max_target_positions=24,
)
HEARD = np.random.default_rng(0).normal(size=(2, 6, 22)).astype(np.float32)
WRITTEN = np.random.default_rng(1).integers(1, 32, (2, 7))
INPUTS = {'input_features': HEARD, 'decoder_input_ids': WRITTEN}
START = (1, 7, 9)


def _params(module):
    params = jax.jit(module.init)(jax.random.key(0), **INPUTS)['params']
    return peftjax.testing.perturb(params, seed=0, size=0.3)


@pytest.fixture(scope='module')
def model():
    return peftjax.wrap(Whisper(CONFIG), _params(Whisper(CONFIG)), INPUTS)


@pytest.mark.sampled
@pytest.mark.parametrize('remat', [None, 'full', *REMAT_POLICIES])
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
def test_every_way_of_building_gives_the_same(scan, remat, model):
    params = model.params
    if not scan:
        params = {name: unstack_layers(params[name]) for name in ('encoder', 'decoder')}
    module = Whisper(CONFIG, scan=scan, remat=remat)
    found = jax.jit(module.apply)({'params': params}, **INPUTS)
    np.testing.assert_allclose(found, model.apply(model.params, **INPUTS), atol=1e-5)


def test_it_listens_and_does_not_look_ahead(model):
    plain = model.apply(model.params, **INPUTS)
    other = model.apply(model.params, **(INPUTS | {'input_features': HEARD * 0.5}))
    assert (np.abs(other - plain).max(axis=-1) > 1e-3).all()
    changed = WRITTEN.copy()
    changed[:, 4] = changed[:, 4] % 31 + 1
    later = model.apply(model.params, **(INPUTS | {'decoder_input_ids': changed}))
    np.testing.assert_array_equal(later[:, :4], plain[:, :4])
    assert (np.abs(later - plain)[:, 4:].max(axis=-1) > 0).all()


def test_dropout_needs_a_key_and_changes_what_is_written():
    module = Whisper(
        WhisperConfig(**{**vars(CONFIG), 'dropout': 0.2, 'attention_dropout': 0.2}), scan=True
    )
    params = {'params': _params(module)}
    runs = [
        applied(
            module, params, **INPUTS, deterministic=False, rngs={'dropout': jax.random.key(seed)}
        )
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


METHODS = {
    'lora': peftjax.lora(rank=2, targets=r'.*attn/(q|v)_proj'),
    'lora on the convolution': peftjax.lora(rank=2, targets=r'encoder/conv2'),
    'dora': peftjax.dora(rank=2, targets=r'decoder/.*attn/(q|v)_proj'),
    'ia3': peftjax.ia3(targets=r'.*attn/(k|v)_proj', feedforward=r'.*/ffn/fc2'),
    'biases': peftjax.select(r'.*bias'),
    'houlsby': peftjax.houlsby(size=2, targets=r'.*(self_attn|ffn)_branch'),
    'prefix': peftjax.prefix_tuning(num_virtual_tokens=3, targets=r'.*core'),
    'prefix without positions': peftjax.prefix_tuning(
        num_virtual_tokens=3, targets=r'.*core', shift_positions=False
    ),
    'prompt': peftjax.prompt_tuning(num_virtual_tokens=3),
    'prompt without positions': peftjax.prompt_tuning(num_virtual_tokens=3, shift_positions=False),
    'prompt by a network': peftjax.p_tuning(num_virtual_tokens=3),
}


@pytest.mark.sampled
@pytest.mark.parametrize('name', METHODS)
def test_methods_train_it_and_it_writes_the_same_with_a_cache(name, model):
    transform = METHODS[name]
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1, size=0.5)
    predict = peftjax.adapt(model, transform)

    @jax.jit
    def loss(adapter):
        return (predict(adapter, frozen, **INPUTS) ** 2).mean()

    for path, leaf in paths.flatten(jax.jit(jax.grad(loss))(adapter)).items():
        assert jnp.isfinite(leaf).all() and jnp.any(leaf != 0), path
    generate = peftjax.generator(model, transform)
    written = generate(adapter, frozen, HEARD, max_new_tokens=6, start_token_id=START)
    assert written.tolist() == _without_a_cache(
        jax.jit(lambda inputs: predict(adapter, frozen, **inputs))
    )


def test_a_prompt_of_embedded_tokens_is_those_tokens_of_the_decoder(model):
    transform = peftjax.prompt_tuning(num_virtual_tokens=2, init=[5, 9])
    adapter, frozen = transform.init(jax.random.key(0), model)
    assert list(adapter) == ['decoder/embed_tokens']
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3])
    found = peftjax.adapt(model, transform)(
        adapter, frozen, **INPUTS, decoder_attention_mask=mask, targets=WRITTEN
    )
    longer = np.insert(WRITTEN, [0, 0], [5, 9], axis=1)
    inputs = {**INPUTS, 'decoder_input_ids': longer}
    inputs['decoder_attention_mask'] = np.insert(mask, [0, 0], 1, axis=1)
    targets = np.insert(WRITTEN, [0, 0], -100, axis=1)
    expected = model.apply(model.params, **inputs, targets=targets)
    np.testing.assert_allclose(found.losses[0], expected.losses[0, 2:], atol=1e-5)
    np.testing.assert_allclose(found.losses[1, :4], expected.losses[1, 2:6], atol=1e-5)


def test_a_prefix_that_is_the_cache_of_tokens_stands_for_them():
    config = dataclasses.replace(CONFIG, decoder_layers=1)
    module = Whisper(config)
    model = peftjax.wrap(module, _params(module), INPUTS)
    ahead = {**INPUTS, 'decoder_input_ids': np.array([[8, 3]] * 2)}
    cache = model.apply(model.params, **ahead, cache_length=2)[1]
    transform = peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'decoder/.*/self_attn/core')
    adapter, frozen = transform.init(jax.random.key(0), model)
    (path,) = adapter['sites']
    leaves = {'key': cache.keys[:, 0], 'value': cache.values[:, 0]}
    adapter = {'sites': {path: peftjax.Entry('prefix_tuning', leaves)}}
    whole = np.concatenate([ahead['decoder_input_ids'], WRITTEN], axis=1)
    expected = model.apply(model.params, **{**INPUTS, 'decoder_input_ids': whole})[:, 2:]
    found = peftjax.adapt(model, transform)(adapter, frozen, **INPUTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_prefix_on_what_is_heard_moves_no_token(model):
    transform = peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'encoder/.*/core')
    still = peftjax.prefix_tuning(
        num_virtual_tokens=2, targets=r'encoder/.*/core', shift_positions=False
    )
    adapter, frozen = transform.init(jax.random.key(0), model)
    found = [peftjax.adapt(model, each)(adapter, frozen, **INPUTS) for each in (transform, still)]
    np.testing.assert_array_equal(*found)
    with pytest.raises(ValueError, match='27 tokens: this checkpoint has 24 positions'):
        model.apply(model.params, **INPUTS, position_shift=20)


@pytest.mark.parametrize('method', [peftjax.prompt_tuning, peftjax.p_tuning])
def test_a_prompt_elsewhere_is_refused_at_init(method, model):
    transform = method(num_virtual_tokens=2, targets='encoder/embed_positions')
    with pytest.raises(peftjax.TargetError, match="'decoder_input_ids' of its decoder"):
        transform.init(jax.random.key(0), model)


@pytest.mark.parametrize(
    'transform',
    [
        peftjax.prompt_tuning(num_virtual_tokens=2),
        peftjax.p_tuning(num_virtual_tokens=2),
        peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'decoder/.*/self_attn/core'),
    ],
)
def test_the_torch_library_has_no_virtual_tokens_for_speech(transform, model, tmp_path):
    base = peftjax.load(GOLDEN / 'tiny_whisper/base')
    adapter, _ = transform.init(jax.random.key(0), base)
    with pytest.raises(ValueError, match="this one reads 'input_features'; peftjax.save keeps"):
        peftjax.save_adapter(tmp_path / 'new', base, transform, adapter)
    folder = shutil.copytree(GOLDEN / 't5_pair/prompt_tuning', tmp_path / 'file')
    with pytest.raises(ValueError, match="this one reads 'input_features'"):
        peftjax.load_adapter(folder, base)


def _without_a_cache(predict, count=6):
    """Greedy, each token from a call of the whole text; what stands behind it is not seen."""
    text = np.zeros((2, len(START) + count), np.int32)
    text[:, : len(START)] = START
    for place in range(len(START), len(START) + count):
        logits = predict({**INPUTS, 'decoder_input_ids': text})
        text[:, place] = np.argmax(logits[:, place - 1], axis=-1)
    return text[:, len(START) :].tolist()


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
def test_a_checkpoint_comes_by_its_folder_and_goes_out_again(scan, tmp_path):
    config, weights, inputs, expected = golden('whisper')
    weights['proj_out.weight'] = weights['model.decoder.embed_tokens.weight']
    folder = write_folder(tmp_path / 'base', config, weights)
    model = peftjax.load(folder, task='seq2seq_lm', scan=scan)
    transform = peftjax.lora(rank=2, alpha=4, targets=r'.*attn/(q|v)_proj|.*/fc1')
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    peftjax.save_adapter(tmp_path / 'adapter', model, transform, adapter)
    again = peftjax.load_adapter(tmp_path / 'adapter', model)
    predict = peftjax.adapt(model, again.transform)
    merged = transform.merge(adapter, frozen)
    found = predict(again.adapter, again.frozen, **inputs)
    tokens = inputs['decoder_attention_mask'] == 1
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        found[tokens], model.apply(merged, **inputs)[tokens], atol=1e-5 * scale
    )
    assert np.abs(found - expected)[tokens].max() > 0.01 * scale


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        ({'input_features': HEARD}, r'decoder_input_ids \[batch, ...\] are missing'),
        ({'decoder_input_ids': WRITTEN}, r'input_features \[batch, ...\] are missing'),
        ({**INPUTS, 'input_features': HEARD[:, :, :20]}, r'floats \[batch, 6 mels, 22 frames\]'),
        ({**INPUTS, 'input_features': HEARD.astype(int)}, r'got int\d+\(2, 6, 22\)'),
        ({**INPUTS, 'cache_length': 25}, '25 tokens: this checkpoint has 24 positions'),
        ({**INPUTS, 'cache_length': 3}, 'cache_length 3 is less than the 7 tokens'),
        ({**INPUTS, 'cache': 'kept'}, 'leave input_features and cache_length out'),
    ],
)
def test_calls_that_cannot_be_are_refused(call, message, model):
    with pytest.raises(ValueError, match=message):
        Whisper(CONFIG).apply({'params': model.params}, **call)


def test_speech_has_no_mask(model):
    frozen = peftjax.chain().freeze(model, ())
    with pytest.raises(ValueError, match='has no attention_mask; leave it out'):
        peftjax.generator(model)((), frozen, HEARD, np.ones((2, 22)), max_new_tokens=2)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'encoder_layerdrop': 0.1}, 'encoder_layerdrop: 0.1 is not supported'),
        ({'scale_embedding': True}, 'scale_embedding: True is not supported'),
        ({'decoder_attention_heads': 5}, 'd_model 16 is not a multiple of 5 heads'),
        ({'surprise': 1}, 'surprise: unknown'),
    ],
)
def test_a_config_that_asks_for_more_is_refused(fields, message):
    config, *_ = golden('whisper')
    assert parse_whisper(config) == CONFIG
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_whisper(config | fields)
