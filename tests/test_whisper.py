"""Whisper however it is built, what it writes of what it hears, and methods on it."""

import re

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
}


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
    with pytest.raises(ValueError, match='hears all of them'):
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
