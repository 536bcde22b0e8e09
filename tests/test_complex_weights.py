"""A method is right on complex weights, or refuses them by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from tests.algebra import assert_close
from tests.rows import METHODS

_DRAW = np.random.default_rng(0).normal
WEIGHT = (_DRAW(size=(8, 16)) + 1j * _DRAW(size=(8, 16))).astype(np.complex64)
X = (_DRAW(size=(5, 8)) + 1j * _DRAW(size=(5, 8))).astype(np.complex64)
TAKEN = {'lora', 'lora, gaussian', 'lora on a tied embedding', 'bitfit', 'full'}
# They act on modules, on layers or on tokens, of which a function of one weight has none.
ELSEWHERE = {
    *('bottleneck', 'houlsby', 'parallel adapter', 'compacter', 'invertible adapter'),
    *('activated lora', 'gated lora', 'prefix tuning', 'adaption prompt', 'prompt tuning'),
    *('loreft', 'direft', 'unipelt', 'top layers'),
}
OF_WEIGHTS = [name for name, row in METHODS.items() if not row.variant and name not in ELSEWHERE]


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
        said = r"computes with real weights, but 'w' is complex64 \[8, 16\]; leave it out"
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
