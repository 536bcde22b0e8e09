"""Methods on a T5: adapters, prompts and prefixes of both stacks, and text from a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.core import paths
from peftjax.models.attention import AttentionCore
from peftjax.models.t5 import T5
from tests.linen import applied
from tests.oracle.cases import stored
from tests.test_t5 import CONFIG, IDS, INPUTS, WRITTEN, looped, params_of


@functools.cache
def _model():
    module = T5(CONFIG)
    masks = {'attention_mask': np.ones_like(IDS), 'decoder_attention_mask': np.ones_like(WRITTEN)}
    return peftjax.wrap(module, params_of(module), {**INPUTS, **masks})


METHODS = {
    'lora': peftjax.lora(rank=2, targets=r'.*attn/[qv]'),
    'lora on the tied embedding': peftjax.lora(rank=2, targets='embed'),
    'ia3': peftjax.ia3(targets=r'.*attn/[kv]', feedforward=r'.*/ffn/wo'),
    'norms': peftjax.select(r'.*layer_norm/scale'),
    'houlsby': peftjax.houlsby(size=2, targets=r'.*(self_attn|ffn)_branch'),
    'compacter': peftjax.compacter(size=4, terms=2, targets=r'.*branch'),
    'prefix': peftjax.prefix_tuning(num_virtual_tokens=3, targets=r'.*core'),
    'prefix by a network': peftjax.prefix_tuning(
        num_virtual_tokens=3, projection=4, targets=r'.*self_attn/core'
    ),
    'intrinsic': peftjax.intrinsic(dimension=20),
    'prompt': peftjax.prompt_tuning(num_virtual_tokens=3),
    'placed prompt': peftjax.prompt_tuning(num_virtual_tokens=2, places=(1, 5)),
    'prompt by a network': peftjax.p_tuning(num_virtual_tokens=3, encoder='lstm', hidden=4),
    'prefix without positions': peftjax.prefix_tuning(
        num_virtual_tokens=3, targets=r'.*core', shift_positions=False
    ),
}


@pytest.mark.sampled
@pytest.mark.parametrize('name', METHODS)
def test_methods_train_an_encoder_and_a_decoder(name):
    model, transform = _model(), METHODS[name]
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    predict = peftjax.adapt(model, transform)

    def loss(adapter):
        return (predict(adapter, frozen, **INPUTS) ** 2).mean()

    gradient = jax.jit(jax.grad(loss))(adapter)
    for path, leaf in paths.flatten(gradient).items():
        assert jnp.isfinite(leaf).all() and jnp.any(leaf != 0), path
    try:
        merged = transform.merge(adapter, frozen)
    except peftjax.MergeError:
        return
    np.testing.assert_allclose(
        predict(adapter, frozen, **INPUTS),
        model.apply(merged, **INPUTS),
        atol=2e-5,
    )


def test_the_core_adds_a_bias_to_its_scores():
    core = AttentionCore()
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value = (jax.random.normal(k, (1, 3, 2, 4)) for k in keys[:3])
    bias = jax.random.normal(keys[3], (1, 2, 3, 3))
    plain = applied(core, {}, query, key, value, None, True, bias)
    scores = jnp.einsum('btnh,bsnh->bnts', query, key) / 2 + bias
    by_hand = jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(scores), value)
    np.testing.assert_allclose(plain, by_hand, atol=1e-5)


def _ahead(ids, mask, tokens):
    """Rows with tokens in front of those that are no padding."""
    longer, seen = [], []
    for row, real in zip(ids, mask, strict=True):
        start = int(np.argmax(real))
        longer.append([*row[:start], *tokens, *row[start:]])
        seen.append([*real[:start], *(1 for _ in tokens), *real[start:]])
    return np.array(longer), np.array(seen)


MASKS = {
    'whole': np.ones_like(IDS),
    'right': np.array([[1] * 9, [1] * 6 + [0] * 3]),
    'left': np.array([[1] * 9, [0] * 4 + [1] * 5]),
}


@pytest.mark.sampled
@pytest.mark.parametrize('side', MASKS)
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
def test_a_prompt_of_embedded_tokens_is_those_tokens_of_the_encoder(scan, side):
    module = T5(CONFIG, scan=scan)
    params = params_of(T5(CONFIG)) if scan else looped(params_of(T5(CONFIG)))
    model = peftjax.wrap(module, params, {**INPUTS, 'attention_mask': MASKS[side]})
    transform = peftjax.prompt_tuning(num_virtual_tokens=3, init=[5, 9])
    found = peftjax.adapt(model, transform)(
        *transform.init(jax.random.key(0), model), **INPUTS, attention_mask=MASKS[side]
    )
    longer, mask = _ahead(IDS, MASKS[side], (5, 9, 5))
    expected = model.apply(params, input_ids=longer, attention_mask=mask, decoder_input_ids=WRITTEN)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_prompt_may_stand_among_the_tokens_of_the_encoder():
    model = _model()
    transform = peftjax.prompt_tuning(num_virtual_tokens=2, init=[5, 9], places=(1, 4))
    adapter, frozen = transform.init(jax.random.key(0), model)
    longer = np.insert(IDS, [1, 4], [5, 9], axis=1)
    expected = model.apply(model.params, input_ids=longer, decoder_input_ids=WRITTEN)
    found = peftjax.adapt(model, transform)(adapter, frozen, **INPUTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # In the first of several calls too: an encoder sees the whole text there.
    logits, _ = peftjax.adapt(model, transform)(adapter, frozen, **INPUTS, cache_length=9)
    np.testing.assert_allclose(logits, expected[:, -1:], atol=1e-5)


def test_a_prefix_that_is_the_cache_of_tokens_stands_for_them():
    config = dataclasses.replace(CONFIG, num_decoder_layers=1)
    params = dict(params_of(T5(CONFIG)))
    params['decoder'] = jax.tree.map(lambda leaf: leaf, params['decoder'])
    params['decoder']['layers'] = jax.tree.map(lambda leaf: leaf[:1], params['decoder']['layers'])
    model = peftjax.wrap(T5(config), params, INPUTS)
    ahead = np.array([[8, 3]])
    first = {**INPUTS, 'decoder_input_ids': np.repeat(ahead, 2, axis=0)}
    cache = model.apply(params, **first, cache_length=2)[1]
    transform = peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'decoder/.*/self_attn/core')
    adapter, frozen = transform.init(jax.random.key(0), model)
    (path,) = adapter['sites']
    leaves = {'key': cache.keys[:, 0], 'value': cache.values[:, 0]}
    adapter = {'sites': {path: peftjax.Entry('prefix_tuning', leaves)}}
    whole = np.concatenate([first['decoder_input_ids'], WRITTEN], axis=1)
    expected = model.apply(params, **{**INPUTS, 'decoder_input_ids': whole})[:, 2:]
    found = peftjax.adapt(model, transform)(adapter, frozen, **INPUTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Without positions the bias of a prefix is zero, wherever it stands.
    still = peftjax.prefix_tuning(
        num_virtual_tokens=2, targets=r'decoder/.*/self_attn/core', shift_positions=False
    )
    other = peftjax.adapt(model, still)(adapter, frozen, **INPUTS)
    assert np.abs(np.asarray(other - expected)).max() > 1e-3


def test_a_prompt_of_a_bank_is_as_long_as_its_own():
    model = _model()
    members = []
    for size in (1, 4):
        transform = peftjax.prompt_tuning(num_virtual_tokens=size, shift_positions=False)
        adapter, frozen = transform.init(jax.random.key(size), model)
        members.append((transform, adapter, frozen))
    bank, frozen = peftjax.serving.bank(model, members)
    mask = MASKS['right']
    mixed = peftjax.serving.adapt(model)(bank, [2, 1], frozen, **INPUTS, attention_mask=mask)
    for row, (transform, adapter, own) in zip((1, 0), members, strict=True):
        alone = peftjax.adapt(model, transform)(adapter, own, **INPUTS, attention_mask=mask)
        np.testing.assert_allclose(mixed[row], alone[row], atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize(
    'name',
    [
        *('t5_pair/prompt_tuning', 't5_pair/prompt_tuning_encoder', 't5_pair/p_tuning'),
        *('t5_pair/prefix_tuning', 't5_three/prefix_tuning'),
    ],
)
def test_it_writes_what_the_torch_library_writes(name, scan):
    case = stored(name)
    model = case.model(scan)
    loaded = peftjax.load_adapter(case.folder, model)
    read = case.inputs['input_ids'], case.inputs['attention_mask']
    generate = peftjax.generator(model, loaded.transform)
    found = generate(loaded.adapter, loaded.frozen, *read, max_new_tokens=8, eos_token_id=1)
    np.testing.assert_array_equal(found, case.outputs['written'])
    plain = peftjax.generator(model)((), _nothing_trains(model), *read, max_new_tokens=8)
    assert plain.tolist() != found.tolist()


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (peftjax.prompt_tuning(num_virtual_tokens=2, targets=r'decoder/relative.*'), 'encoder'),
        (
            peftjax.p_tuning(num_virtual_tokens=2, targets=r'decoder/relative.*'),
            r"go among the tokens 'input_ids' of its encoder, .* write targets='embed'",
        ),
    ],
)
def test_a_prompt_elsewhere_is_refused_at_init(transform, message):
    with pytest.raises(peftjax.TargetError, match=message):
        transform.init(jax.random.key(0), _model())


def _nothing_trains(model):
    return peftjax.chain().freeze(model, ())


def _without_a_cache(predict, count=6):
    """Greedy, each token from a call of the whole text; what stands behind it is not seen."""
    written = np.zeros((2, count + 1), np.int32)
    for place in range(count):
        logits = predict({**INPUTS, 'decoder_input_ids': written})
        written[:, place + 1] = np.argmax(logits[:, place], axis=-1)
    return written[:, 1:].tolist()


MASK = np.array([[1] * 9, [1] * 6 + [0] * 3])


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
def test_a_cache_changes_nothing(scan):
    module = T5(CONFIG, scan=scan)
    params = params_of(T5(CONFIG)) if scan else looped(params_of(T5(CONFIG)))
    model = peftjax.wrap(module, params, {**INPUTS, 'attention_mask': MASK})
    generate = peftjax.generator(model)
    written = generate((), _nothing_trains(model), IDS, MASK, max_new_tokens=6)
    apply = jax.jit(lambda inputs: model.apply(params, **inputs, attention_mask=MASK))
    assert written.tolist() == _without_a_cache(apply)


@pytest.mark.sampled
@pytest.mark.parametrize(
    'name',
    ['lora', 'ia3', 'houlsby', 'prefix', 'prefix without positions', 'prompt', 'placed prompt'],
)
def test_an_adapted_model_writes_the_same_with_a_cache(name):
    model, transform = _model(), METHODS[name]
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1, size=0.5)
    written = peftjax.generator(model, transform)(adapter, frozen, IDS, max_new_tokens=6)
    predict = peftjax.adapt(model, transform)
    expected = _without_a_cache(lambda inputs: predict(adapter, frozen, **inputs))
    assert written.tolist() == expected
    plain = peftjax.generator(model)((), _nothing_trains(model), IDS, max_new_tokens=6)
    assert plain.tolist() != expected


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        ({'decoder_input_ids': WRITTEN}, 'input_ids .* are missing'),
        ({**INPUTS, 'cache_length': 3}, 'cache_length 3 is less than the 7 tokens'),
        ({**INPUTS, 'cache': 'kept'}, 'the cache holds the encoded input'),
    ],
)
def test_calls_that_cannot_be_are_refused(call, message):
    module = T5(CONFIG)
    variables = {'params': params_of(module)}
    if 'cache' in call:
        call = {**call, 'cache': module.apply(variables, **INPUTS, cache_length=9)[1]}
    with pytest.raises(ValueError, match=message):
        module.apply(variables, **call)
