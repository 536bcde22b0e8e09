"""`save` and `restore`: any method of any model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.interop.folder import arrays as files
from peftjax.interop.folder.constructors import METHODS as MAKERS
from tests.contract_models import IDS, MODELS
from tests.rows import METHODS
from tests.saved_folders import MLP, assert_same, round_trip

FORM = 'linen scanned'
X = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)


def _drawn(transform, model):
    """An adapter of random numbers, without computing the start, and what is frozen beside it."""
    shapes = jax.eval_shape(transform.start, jax.random.key(0), model)
    random = np.random.default_rng(0)
    adapter = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype), shapes
    )
    return adapter, transform.freeze(model, adapter)


def _kept(folder, model, method):
    """A method with a drawn adapter and what is frozen beside it, and what comes back of them."""
    row = METHODS[method]
    transform = row.maker(model)(row.targets)
    parts = (transform, *_drawn(transform, model))
    return parts, round_trip(folder, model, *parts)


def _program(model, transform, adapter, frozen):
    predict = peftjax.adapt(model, transform)
    run = jax.jit(lambda a, f, k: predict(a, f, ids=IDS, adapter_key=k))
    return run.lower(adapter, frozen, jax.random.key(0)).as_text()


# LoftQ's start takes seconds on a scanned model; a smaller one has a test of its own.
_QUICK = [m if m != 'loftq' else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]


@pytest.mark.sampled
@pytest.mark.parametrize('method', _QUICK)
def test_every_method_comes_back(method, tmp_path):
    """The same bits and the same program: so it predicts the same bits, with dropout too."""
    model = MODELS[FORM]()
    parts, restored = _kept(tmp_path, model, method)
    if not METHODS[method].variant:  # Those predict in the slow test.
        assert _program(model, *restored) == _program(model, *parts)


@pytest.mark.slow
@pytest.mark.parametrize('form', [form for form in MODELS if form != FORM])
@pytest.mark.parametrize('method', METHODS)
def test_every_method_comes_back_on_every_form(method, form, tmp_path):
    model = MODELS[form]()
    outputs = (
        peftjax.adapt(model, each)(a, f, ids=IDS) for each, a, f in _kept(tmp_path, model, method)
    )
    assert files.same(*outputs)


def test_what_may_be_described_is_what_is_public():
    makers = {
        name
        for name in peftjax.__all__
        if hasattr(make := getattr(peftjax, name), '__annotations__')
        and make.__annotations__.get('return') is peftjax.PeftTransform
    }
    assert set(MAKERS) == makers - {'weightwise'}


def test_chains_and_own_arguments(tmp_path):
    mlp = MLP()
    a = 0.1 * jnp.arange(8.0).reshape(4, 2)
    transform = peftjax.named_chain({
        'bias': peftjax.select((r'.*/bias',), dtype=None),
        'low': peftjax.chain(
            peftjax.lora(
                rank=2,
                alpha=np.float32(3),  # pyright: ignore[reportArgumentType]
                targets=r'hidden',
                init={'hidden/kernel': a},
                dtype='bfloat16',
            ),
            peftjax.lora(rank=1, targets=r'out', alpha_pattern={r'out': 5}),
        ),
    })  # fmt: skip
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    restored = round_trip(tmp_path, mlp, transform, adapter, frozen)
    assert files.same(
        peftjax.adapt(mlp, transform)(adapter, frozen, X),
        peftjax.adapt(mlp, restored.transform)(restored.adapter, restored.frozen, X),
    )
    assert repr(restored.transform.init(jax.random.key(0), mlp)[0]) == repr(adapter)
    bottleneck = peftjax.bottleneck(size=2, targets=r'hidden', activation=jax.nn.gelu)
    round_trip(tmp_path, mlp, bottleneck, *bottleneck.init(jax.random.key(0), mlp))


def _own(dtype):
    """A transform of own functions, with complex numbers of its own."""
    return peftjax.weightwise(
        lambda key, matrix, site: {'phase': jnp.ones(matrix.shape[1], dtype)},
        lambda leaves, matrix: matrix * jnp.real(leaves['phase'] * leaves['turn'])[None],
        targets=r'.*/kernel',
        own=lambda site: {'turn': jnp.asarray([1.0 + 2.0j], jnp.complex64)},
        name='own',
    )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'complex64', 'float8_e4m3fn', 'int4'])
def test_an_own_transform_is_given_back(dtype, tmp_path):
    mlp, transform = MLP(), _own(dtype)
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    peftjax.save(tmp_path, mlp, transform, adapter, frozen)
    with pytest.raises(peftjax.CheckpointError, match=r'restore\(folder, model, transform=tx\)'):
        peftjax.restore(tmp_path, mlp)
    assert_same(peftjax.restore(tmp_path, mlp, transform=transform), adapter, frozen)
    # Changed by hand: by value, beside a transform that is described too.
    turned = {'out/kernel': {'turn': jnp.asarray([2.0j], jnp.complex64)}}
    own = frozen.own.replace(**turned)
    pair = peftjax.chain(peftjax.lora(rank=1, targets=r'out'), transform)
    whole, both = pair.init(jax.random.key(0), mlp)
    both = both._replace(own=(both.own[0], own))
    peftjax.save(tmp_path, mlp, pair, whole, both)
    assert_same(peftjax.restore(tmp_path, mlp, transform=pair), whole, both)
    assert (tmp_path / 'frozen.safetensors').is_file()


def test_select_in_a_bfloat16_model(tmp_path):
    mlp = MLP()
    mlp = mlp.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mlp.params))
    for dtype in (jnp.float32, None):
        transform = peftjax.select(r'.*/bias', dtype=dtype)
        adapter, frozen = transform.init(jax.random.key(0), mlp)
        restored = round_trip(tmp_path, mlp, transform, adapter, frozen)
        assert restored.adapter['out/bias'].dtype == (dtype or jnp.bfloat16)
        assert isinstance(restored.frozen.params['out']['bias'], peftjax.Hole)


def test_targets_with_exceptions_come_back(tmp_path):
    chosen = peftjax.targets(['hidden', 'out'], exclude=['out'], expect=1)
    tx = peftjax.lora(rank=2, targets=chosen)
    model = peftjax.testing.tiny_mlp()
    peftjax.save(tmp_path, model, tx, *tx.init(jax.random.key(0), model))
    restored = peftjax.restore(tmp_path, model)
    about = restored.transform.about
    assert about is not None and about.arguments['targets'] == chosen
    assert sorted(restored.adapter) == ['hidden/kernel']
