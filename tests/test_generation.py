"""What a decoder writes with a cache is what it writes without one, whatever is adapted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.models.gpt2 import GPT2
from peftjax.models.gpt2_config import GPT2Config
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from tests.checkpoint_files import SMOLLM2, pretrained, require_package

LLAMA = LlamaConfig(50, 16, 24, 2, 4, 2, 4)
MODULES = {
    'llama': Llama(LLAMA),
    'llama looped': Llama(LLAMA, scan=False),
    'llama, a window of 4': Llama(LlamaConfig(50, 16, 24, 2, 4, 2, 4, sliding_window=4)),
    'llama rematerialised': Llama(LLAMA, remat='full'),
    'gpt2': GPT2(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=40)),
}
PROMPTS = ([5, 9, 11, 3, 8, 2, 7], [4, 1], [6, 6, 10, 12])
IDS, MASK = peftjax.pad_left(PROMPTS)
NEW = 9


@functools.cache
def _model(name):
    module = MODULES[name]
    shapes = jax.eval_shape(module.init, jax.random.key(0), input_ids=IDS)['params']
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), jnp.float32), shapes
    )
    return peftjax.wrap(module, params, {'input_ids': IDS, 'attention_mask': MASK})


def _plain(model):
    """Everything frozen of a model that nothing adapts."""
    return peftjax.chain().freeze(model, ())


@functools.cache
def _generator(name):
    """Of the plain model: one, so that calls of the same shapes are one program."""
    return peftjax.generator(_model(name))


def _without_a_cache(predict, prompt, count=NEW):
    """Greedy, each token from a call of the whole row; what stands behind it is not seen."""
    ids = list(prompt)
    for _ in range(count):
        row = np.zeros((1, len(PROMPTS[0]) + NEW), np.int32)
        row[0, : len(ids)] = ids
        ids.append(int(jnp.argmax(predict(row)[0, len(ids) - 1])))
    return ids[len(prompt) :]


@pytest.mark.parametrize('name', MODULES)
def test_a_cache_changes_nothing(name):
    model = _model(name)
    written = _generator(name)((), _plain(model), IDS, MASK, max_new_tokens=NEW)
    apply = jax.jit(lambda ids: model.apply(model.params, input_ids=ids))
    assert written.tolist() == [_without_a_cache(apply, prompt) for prompt in PROMPTS]


def test_several_tokens_may_follow_at_once():
    model = _model('llama')
    whole = model.apply(model.params, input_ids=IDS[:1])
    logits, cache = model.apply(model.params, input_ids=IDS[:1, :3], cache_length=7)
    np.testing.assert_allclose(logits[:, 0], whole[:, 2], atol=1e-5)
    logits, cache = model.apply(model.params, input_ids=IDS[:1, 3:5], cache=cache)
    np.testing.assert_allclose(logits, whole[:, 3:5], atol=1e-5)
    logits, cache = model.apply(model.params, input_ids=IDS[:1, 5:], cache=cache)
    np.testing.assert_allclose(logits, whole[:, 5:], atol=1e-5)
    assert (cache.length, cache.position.tolist(), cache.mask.all()) == (7, [7], True)


_KERNELS = r'layers.*/[qkv]_proj'
_CORES = r'layers.*/core'
METHODS = {
    'lora': peftjax.lora(rank=2, targets=_KERNELS),
    'dora': peftjax.dora(rank=2, targets=_KERNELS),
    'oft': peftjax.oft(block_size=4, targets=_KERNELS),
    'vblora': peftjax.vblora(rank=2, num_vectors=5, vector_length=4, targets=_KERNELS),
    'ia3': peftjax.ia3(targets=r'layers.*/[kv]_proj', feedforward=r'layers.*/down_proj'),
    'lora on the head': peftjax.lora(rank=2, targets='lm_head'),
    'select': peftjax.select(r'norm/scale'),
    'houlsby': peftjax.houlsby(size=3, targets=r'layers.*/(self_attn|mlp)_branch'),
    'loreft everywhere': peftjax.loreft(rank=2, targets=r'layers'),
    'loreft at both ends': peftjax.loreft(rank=2, positions='f1+l1', targets=r'layers'),
    'prompt': peftjax.prompt_tuning(num_virtual_tokens=3, targets='embed_tokens'),
    'prompt inside': peftjax.prompt_tuning(
        num_virtual_tokens=2, places=(1, 1), targets='embed_tokens'
    ),
    'p-tuning': peftjax.p_tuning(num_virtual_tokens=3, hidden=4, targets='embed_tokens'),
    'prefix': peftjax.prefix_tuning(num_virtual_tokens=3, targets=_CORES),
    'prefix that moves no position': peftjax.prefix_tuning(
        num_virtual_tokens=3, shift_positions=False, targets=_CORES
    ),
    'prefix by a network': peftjax.prefix_tuning(
        num_virtual_tokens=3, projection=4, targets=_CORES
    ),
    'adaption prompt': peftjax.adaption_prompt(num_virtual_tokens=3, targets=_CORES),
    'a prefix and lora': peftjax.chain(
        peftjax.lora(rank=2, targets=_KERNELS),
        peftjax.prefix_tuning(num_virtual_tokens=2, targets=_CORES),
    ),
}
# Whose edits stand at the ends of the prompt: without a cache the end moves with each token.
_AT_THE_PROMPT = {'loreft at both ends'}
# Whose places count from the front of the row, where shorter prompts are padded.
_FROM_THE_FRONT = {'prompt inside'}


def _moved(model, transform):
    adapter, frozen = transform.init(jax.random.key(0), model)
    return peftjax.testing.perturb(adapter, seed=1, size=0.5), frozen


@functools.cache
def _written(name):
    """By the adapted model."""
    model, transform = _model('llama'), METHODS[name]
    rows = slice(1) if name in _FROM_THE_FRONT else slice(None)
    return peftjax.generator(model, transform)(
        *_moved(model, transform), IDS[rows], MASK[rows], max_new_tokens=NEW
    ).tolist()


@pytest.mark.sampled
@pytest.mark.parametrize('name', [name for name in METHODS if name not in _AT_THE_PROMPT])
def test_an_adapted_model_writes_the_same_with_a_cache(name):
    model, transform = _model('llama'), METHODS[name]
    adapter, frozen = _moved(model, transform)
    predict = peftjax.adapt(model, transform)
    written = _written(name)
    assert written == [
        _without_a_cache(lambda ids: predict(adapter, frozen, input_ids=ids), prompt)
        for prompt in PROMPTS[: len(written)]
    ]
    plain = _generator('llama')((), _plain(model), IDS, MASK, max_new_tokens=NEW)
    assert written != plain.tolist()[: len(written)]


@pytest.mark.parametrize('positions', ['f2', 'f1+l1'])
def test_edits_at_the_ends_need_whole_rows(positions):
    model, ids = _model('llama'), IDS[:1]
    transform = peftjax.loreft(rank=2, positions=positions, targets=r'layers')
    adapter, frozen = _moved(model, transform)
    with pytest.raises(ValueError, match=r'a call with a cache sees a part'):
        peftjax.adapt(model, transform)(adapter, frozen, input_ids=ids, cache_length=8)


@pytest.mark.parametrize('name', ['lora', 'dora', 'oft', 'vblora', 'ia3'])
def test_a_merged_model_writes_what_the_adapted_one_does(name):
    model, transform = _model('llama'), METHODS[name]
    adapter, frozen = _moved(model, transform)
    merged = model.replace(params=transform.merge(adapter, frozen))
    together = _generator('llama')((), _plain(merged), IDS, MASK, max_new_tokens=NEW)
    assert together.tolist() == _written(name)


def test_what_depends_on_weights_alone_is_computed_outside_of_the_loop():
    model, transform = _model('llama'), METHODS['dora']
    adapter, frozen = _moved(model, transform)
    generate = peftjax.generator(model, transform)
    text = str(
        jax.make_jaxpr(lambda a, f: generate(a, f, IDS, MASK, max_new_tokens=NEW))(adapter, frozen)
    )
    before, _, inside = text.partition(' while[')
    assert 'sqrt' in before and inside
    # Norms take reciprocal roots; the lengths of DoRA's columns are the only plain ones.
    assert ' sqrt ' not in inside.replace('rsqrt', '')


def test_a_row_ends_where_it_has_written_the_end():
    model = _model('llama')
    generate = _generator('llama')
    plain = np.asarray(generate((), _plain(model), IDS, MASK, max_new_tokens=NEW))
    end = int(plain[0, 3])
    ended = np.asarray(
        generate(
            (),
            _plain(model),
            IDS,
            MASK,
            max_new_tokens=NEW,
            eos_token_id=[end, 49],
            pad_token_id=48,
        )
    )
    for before, after in zip(plain, ended, strict=True):
        ends = np.flatnonzero(np.isin(before, [end, 49]))
        stop = ends[0] + 1 if len(ends) else NEW
        assert after.tolist() == [*before[:stop], *[48] * (NEW - stop)]


def test_samples_follow_temperature_top_k_and_top_p():
    logits = jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1]]))
    left = peftjax.Sampling(temperature=1.0, top_k=3, top_p=0.7).left(logits)
    np.testing.assert_array_equal(jnp.isfinite(left), [[True, True, False, False]])
    left = peftjax.Sampling(temperature=1.0, top_p=0.71).left(logits)
    np.testing.assert_array_equal(jnp.isfinite(left), [[True, True, True, False]])
    keys = jax.random.split(jax.random.key(0), 4000)
    sampling = peftjax.Sampling(temperature=2.0, top_k=2)
    drawn = jax.vmap(lambda key: sampling.choose(logits, key)[0])(keys)
    expected = np.sqrt([0.4, 0.3]) / np.sqrt([0.4, 0.3]).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4)[:2] / 4000, expected, atol=0.03)
    assert drawn.max() == 1


def test_draws_repeat_with_their_key():
    model = _model('llama')
    generate = functools.partial(
        _generator('llama'),
        (),
        _plain(model),
        IDS,
        MASK,
        max_new_tokens=NEW,
        sampling=peftjax.Sampling(temperature=2.0),
    )
    first, again, other = (generate(key=jax.random.key(seed)).tolist() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'input_ids': IDS[0]}, 'must be integers'),
        ({'attention_mask': MASK[:, ::-1]}, 'row 1 of attention_mask ends with padding'),
        ({'max_new_tokens': 0}, 'at least 1, got 0'),
        ({'sampling': peftjax.Sampling(temperature=1.0)}, 'give key='),
    ],
)
def test_wrong_calls_are_refused_by_name(change, message):
    model = _model('llama')
    call = {'input_ids': IDS, 'attention_mask': MASK, 'max_new_tokens': 2} | change
    with pytest.raises(ValueError, match=message):
        peftjax.generator(model)((), _plain(model), **call)


def test_what_cannot_be_is_refused():
    mlp = peftjax.testing.tiny_mlp()
    with pytest.raises(ValueError, match='no argument with the roles'):
        peftjax.generator(mlp)((), _plain(mlp), IDS, max_new_tokens=1)
    with pytest.raises(ValueError, match='at least 0'):
        peftjax.Sampling(temperature=-1.0)
    with pytest.raises(ValueError, match='at least 1, or None'):
        peftjax.Sampling(top_k=0)
    with pytest.raises(ValueError, match=r'in \(0, 1\]'):
        peftjax.Sampling(top_p=0.0)
    with pytest.raises(ValueError, match='every prompt needs a token'):
        peftjax.pad_left([[1], []])
    model = _model('gpt2')
    with pytest.raises(ValueError, match='45 tokens: this checkpoint has 40'):
        peftjax.generator(model)((), _plain(model), IDS, MASK, max_new_tokens=39)
    with pytest.raises(ValueError, match='cache_length 3 is less than the 7 tokens'):
        model.apply(model.params, input_ids=IDS, cache_length=3)
    cache = model.apply(model.params, input_ids=IDS, cache_length=8)[1]
    with pytest.raises(ValueError, match='belong to the first call'):
        model.apply(model.params, input_ids=IDS[:, :1], attention_mask=MASK[:, :1], cache=cache)


@pytest.mark.parametrize('tokens', [16, pytest.param(64, marks=pytest.mark.slow)])
def test_smollm2_writes_what_transformers_does(tokens):
    model = peftjax.load(require_package(SMOLLM2))
    expected = pretrained('smollm2_greedy')
    written = peftjax.generator(model)(
        (),
        _plain(model),
        expected['input_ids'],
        expected['attention_mask'],
        max_new_tokens=tokens,
        eos_token_id=2,
        pad_token_id=2,
    )
    # The two best tokens are never closer than 1e-3, ten times our distance to the reference.
    assert expected['written'].shape == (20, 64)
    np.testing.assert_array_equal(written, expected['written'][:, :tokens])
