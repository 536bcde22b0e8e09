"""Fused kernels: what is put to them, where they are taken, and what they refuse.

cuDNN runs on GPUs alone. What is put to it is put to JAX's own function of the same arguments here.
Splash attention runs in Pallas' interpreter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.core.masks import Mask
from peftjax.models import cudnn, splash
from peftjax.models.attend import attend
from tests.attention import Case, packed, right_padded, structures
from tests.test_attend import close, follows_its_definition

QUERIES = 64
_SQUARE = structures(QUERIES)
_LONG = structures(130)  # more than a block of 128, and no whole number of them


@pytest.fixture
def stand_in(monkeypatch):
    """JAX's own attention, in float32, in the place of cuDNN's."""

    def own(causal, window, scale, query, key, value, seen):
        wide = (x.astype(jnp.float32) for x in (query, key, value))
        window = None if window is None else (window - 1, 0)
        attended = jax.nn.dot_product_attention(
            *wide, mask=seen, scale=scale, is_causal=causal, local_window_size=window
        )
        return attended.astype(query.dtype)

    monkeypatch.setattr(cudnn, '_attend', own)


def _taken(kernel, case):
    others = {'bias': None, 'softcap': None, 'dropout': None}
    query, key, *_ = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in case.shapes())
    return kernel.obstacle(query, key, case.mask, **others) is None


_TO_CUDNN = {n: c for n, c in _SQUARE.items() if c.mask.windowed is None and _taken(cudnn, c)}
_TO_SPLASH = {n: c for n, c in _LONG.items() if c.mask.windowed is None and _taken(splash, c)}


def test_most_structures_are_taken():
    named = {name for name, case in _SQUARE.items() if case.mask.windowed is None}
    assert set(_TO_CUDNN) == named
    assert named - set(_TO_SPLASH) == {'array', 'causal array', 'prefix, packed'}


@pytest.mark.sampled
@pytest.mark.parametrize('case', _TO_CUDNN.values(), ids=_TO_CUDNN)
def test_what_is_put_to_cudnn_is_what_was_asked_for(case, stand_in):
    attend_so = functools.partial(attend, implementation='cudnn', mask=case.mask)
    follows_its_definition(case, attend_so, jnp.float16, 4e-3)


def _interpreted(case, softcap=None):
    return lambda query, key, value: splash.forward(
        query, key, value, case.mask, scale=0.25, softcap=softcap, interpret=True
    )


@pytest.mark.sampled
@pytest.mark.parametrize(
    'name',
    ['window', 'causal, padded on the left', 'packed and padded', 'prefix, padded']
    + [pytest.param(name, marks=pytest.mark.slow) for name in sorted(_TO_SPLASH)],
)
def test_what_is_put_to_splash_is_what_was_asked_for(name):
    follows_its_definition(_LONG[name], jax.jit(_interpreted(_LONG[name])), jnp.float32, 1e-5)


def test_queries_that_see_nothing_get_finite_numbers_from_splash():
    case = _LONG['causal, padded on the left']
    *operands, _ = case.operands()
    result, pull = jax.vjp(jax.jit(_interpreted(case)), *operands)
    found = result, *pull(jnp.ones_like(result))
    assert all(np.isfinite(np.asarray(each)).all() for each in found)


def test_splash_bounds_scores():
    case = _LONG['causal']._replace(softcap=0.7)
    follows_its_definition(case, jax.jit(_interpreted(case, 0.7)), jnp.float32, 1e-5)


_PADDED = np.stack([right_padded(QUERIES), packed(QUERIES) % 3 > 0])
_SEGMENTS = np.stack([packed(QUERIES), packed(QUERIES)[::-1] // 2])
_ARRAYS = np.random.default_rng(0).random((2, 1, 1, QUERIES, QUERIES)) < 0.8
_OWN_MASKS = {
    'padding of its own': Mask(causal=True, valid=jnp.asarray(_PADDED)),
    'segments of its own': Mask(causal=True, segments=jnp.asarray(_SEGMENTS)),
    'an array of its own': Mask(array=jnp.asarray(_ARRAYS)),
    'one mask': Mask(causal=True),
}


@pytest.mark.sampled
@pytest.mark.parametrize('mapped', [(0, 0, 0), (0, None, None), (None, 0, 0)], ids=str)
@pytest.mark.parametrize('mask', _OWN_MASKS.values(), ids=_OWN_MASKS)
def test_runs_under_vmap_are_those_one_by_one(mask, mapped, stand_in):
    case = Case(QUERIES, QUERIES, Mask())
    query, key, value, slope = case.operands(jnp.float16)
    operands = [jnp.stack([x, 0.5 * x + 0.1]) for x in (query, key, value)]

    def gradients(query, key, value, mask):
        attend_so = functools.partial(attend, mask=mask, implementation='cudnn')
        result, pull = jax.vjp(attend_so, query, key, value)
        return result, pull(slope)

    given = [x if axis == 0 else x[0] for x, axis in zip(operands, mapped, strict=True)]
    query, key, value = given
    together = jax.vmap(gradients, (*mapped, 0))(query, key, value, mask)

    def run(number, x, axis=0):
        return x[number] if axis == 0 else x

    for number in range(2):
        query, key, value = (run(number, x, axis) for x, axis in zip(given, mapped, strict=True))
        alone = gradients(query, key, value, jax.tree.map(functools.partial(run, number), mask))
        found = jax.tree.map(functools.partial(run, number), together)
        jax.tree.map(lambda a, b: close(a, b, 2e-3), found, alone)


@pytest.mark.parametrize('shared', [4, 1], ids=['heads that split', 'a head for all'])
def test_devices_of_a_mesh_attend_for_their_own(shared, stand_in):
    case = Case(
        QUERIES, QUERIES, Mask(causal=True, valid=jnp.asarray(right_padded(QUERIES))), shared=shared
    )
    *operands, slope = case.operands(jnp.float16)

    @jax.jit
    def gradients(query, key, value):
        attend_so = functools.partial(attend, mask=case.mask, implementation='cudnn')
        result, pull = jax.vjp(attend_so, query, key, value)
        return result, pull(slope)

    alone = gradients(*operands)
    with jax.set_mesh(peftjax.make_mesh(data=2, fsdp=1, tensor=4)):
        jax.tree.map(lambda a, b: close(a, b, 2e-3), gradients(*operands), alone)


@pytest.mark.parametrize('name', ['window', 'a window that holds', 'a window that does not hold'])
def test_the_platform_of_the_program_chooses(name, monkeypatch):
    """On a TPU this is splash attention, and elsewhere plain attention in the same program."""
    monkeypatch.setattr(splash, 'is_there', lambda: True)
    case = _LONG[name]
    *operands, slope = case.operands(jnp.bfloat16)

    def gradients(query, key, value, implementation=None):
        attend_so = functools.partial(attend, mask=case.mask, implementation=implementation)
        result, pull = jax.vjp(attend_so, query, key, value)
        return result, pull(slope)

    assert 'splash' in str(jax.make_jaxpr(gradients)(*operands))
    found = jax.jit(gradients)(*operands)
    expected = gradients(*operands, implementation='plain')
    jax.tree.map(lambda a, b: close(a, np.asarray(b, np.float64), 2e-2), found, expected)


_ODD = jnp.ones((2, 65, 4, 16), jnp.bfloat16)
_QUERY = jnp.ones((2, QUERIES, 4, 16), jnp.bfloat16)
_REFUSED = {
    'float32': ({'query': _QUERY.astype(jnp.float32)}, 'both must be bfloat16 or float16'),
    'wide heads': ({'query': jnp.ones((2, QUERIES, 4, 136), jnp.bfloat16)}, 'width of 136'),
    'few queries': ({'query': _QUERY[:, :12]}, '12 queries are fewer than 64'),
    'a bias': ({'bias': jnp.zeros((1, 1, QUERIES, QUERIES))}, 'bias is given'),
    'a soft cap': ({'softcap': 2.0}, 'softcap is given'),
    'dropout': ({'dropout': (0.1, jax.random.key(0))}, 'dropout is given'),
    'a cache': ({'mask': Mask(causal=True, offset=jnp.int32(2))}, 'mask.offset is given'),
    'keys of others': (
        {'mask': Mask(causal=True, prefix=2)},
        'as many keys as queries, not 64 queries and 62 keys',
    ),
    'masks by head': (
        {'mask': Mask(array=jnp.ones((1, 4, QUERIES, QUERIES), bool))},
        'the mask differs between heads',
    ),
    'odd lengths': (
        {
            'query': jnp.ones((2, 65, 4, 16), jnp.bfloat16),
            'mask': Mask(segments=jnp.ones((2, 65), int)),
        },
        'both must be even',
    ),
}


@pytest.mark.parametrize(('changed', 'message'), _REFUSED.values(), ids=_REFUSED)
def test_what_cudnn_cannot_do_is_refused_by_name(changed, message):
    call = {'query': _QUERY, 'mask': Mask(), **changed}
    keys = call['query']
    with pytest.raises(ValueError, match=f"'cudnn' cannot compute this call: .*{message}.*=None"):
        attend(key=keys, value=keys, implementation='cudnn', **call)
    assert np.isfinite(np.asarray(attend(key=keys, value=keys, **call), np.float32)).all()


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"'flash' is unknown: write one of \['cudnn', 'plain'"):
        attend(_QUERY, _QUERY, _QUERY, implementation='flash')
