"""A method is right on complex weights, or refuses them by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
from tests.algebra import assert_close
from tests.rows import METHODS

_DRAW = np.random.default_rng(0).normal
WEIGHT = (_DRAW(size=(8, 16)) + 1j * _DRAW(size=(8, 16))).astype(np.complex64)
X = (_DRAW(size=(5, 8)) + 1j * _DRAW(size=(5, 8))).astype(np.complex64)
TAKEN = {'lora', 'lora, gaussian', 'lora on a tied embedding', 'bitfit', 'full'}
# A function of one weight has no modules, layers, tokens, biases or other paths to act on.
ELSEWHERE = {
    *('bottleneck', 'houlsby', 'parallel adapter', 'compacter', 'invertible adapter'),
    *('activated lora', 'gated lora', 'prefix tuning', 'adaption prompt', 'prompt tuning'),
    *('prefix tuning, reparametrised', 'p-tuning', 'p-tuning, lstm', 'mam', 'phm adapter'),
    *('bottleneck with gate and norms', 'noreft', 'loreft', 'direft', 'unipelt', 'top layers'),
    *('lora, bias', 'rslora with patterns'),
}
OF_WEIGHTS = [name for name in METHODS if name not in ELSEWHERE]


def _model():
    return peftjax.wrap(lambda params, x: jnp.abs(x @ params['w']), {'w': jnp.asarray(WEIGHT)}, X)


def _make(name, model):
    if name == 'ia3':
        return peftjax.ia3(targets=r'w')
    return METHODS[name].maker(model)(r'w')


@pytest.mark.parametrize('name', OF_WEIGHTS)
def test_a_method_is_right_on_complex_weights_or_refuses_them(name):
    model = _model()
    if name not in TAKEN:
        said = r"computes with real numbers, but 'w' is complex64 \[8, 16\]; leave it out"
        with pytest.raises(peftjax.TargetError, match=said):
            _make(name, model).init(jax.random.key(0), model)
        return
    transform = _make(name, model)
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    with jax.default_matmul_precision('highest'):
        adapted = peftjax.adapt(model, transform)(adapter, frozen, X)
        assert_close(adapted, model.apply(transform.merge(adapter, frozen), X), 1e-5)
    assert np.abs(adapted - np.abs(X @ WEIGHT)).max() > 1e-2


def test_lora_adds_its_real_product_to_complex_weights():
    model = _model()
    transform = peftjax.lora(rank=2, alpha=6, targets=r'w')
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    a, b = (np.asarray(adapter['w'][name], np.float64) for name in 'ab')
    expected = np.abs(X @ (WEIGHT + 3 * a @ b))
    with jax.default_matmul_precision('highest'):
        assert_close(peftjax.adapt(model, transform)(adapter, frozen, X), expected, 1e-5)
        assert_close(model.apply(transform.merge(adapter, frozen), X), expected, 1e-5)


@pytest.mark.parametrize(
    'transform', [peftjax.full(), peftjax.select(r'w')], ids=['full', 'select']
)
def test_a_step_on_complex_weights_goes_downhill(transform):
    """The gradient of JAX is the conjugate of the direction in which the loss rises."""
    model = _model()
    adapter, frozen = transform.init(jax.random.key(0), model)
    predict = peftjax.adapt(model, transform)

    def loss(adapter, frozen, batch, key):
        del key
        return jnp.mean((predict(adapter, frozen, batch) - 1) ** 2), {}

    optimizer = optax.sgd(0.05)
    step = jax.jit(peftjax.train.make_train_step(loss, optimizer))
    state = peftjax.train.init_state(adapter, optimizer, jax.random.key(0))
    losses = []
    for _ in range(20):
        state, metrics = step(state, frozen, jnp.asarray(X))
        losses.append(float(metrics['loss']))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize('name', ['dora', 'intrinsic', 'hira'])
def test_an_adapter_of_real_weights_is_not_frozen_beside_complex_ones(name):
    real = peftjax.wrap(lambda params, x: x @ params['w'], {'w': jnp.asarray(WEIGHT.real)}, X.real)
    transform = _make(name, real)
    adapter, _ = transform.init(jax.random.key(0), real)
    with pytest.raises(peftjax.TargetError, match='computes with real numbers'):
        transform.freeze(_model(), adapter)


def test_what_computes_with_real_numbers_refuses_complex_weights():
    model = _model()
    tuned = model.replace(params={'w': 2 * model.params['w']})
    transform = peftjax.lora(rank=2, targets=r'w')
    adapter, frozen = transform.init(jax.random.key(0), model)
    change = peftjax.merging.delta(model, transform, adapter, frozen)
    for act, user in (
        (lambda: peftjax.quantize(model, 'nf4', targets=r'w'), 'quantize'),
        (lambda: peftjax.merging.delta_of(tuned, model), 'a delta'),
        (lambda: peftjax.merging.intruder_dimensions(model, change), 'intruder_dimensions'),
        (lambda: peftjax.merge_loss(transform, adapter, frozen), 'merge_loss'),
    ):
        said = f"{user} computes with real numbers, but 'w' is complex64"
        with pytest.raises(peftjax.TargetError, match=said):
            act()
