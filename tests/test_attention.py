"""The attention core: masks, dropout, and long rows a block of queries at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.core.masks import Mask
from peftjax.models import plain
from peftjax.models.attention import AttentionCore
from tests.compiled import shapes
from tests.linen import applied


def test_a_window_hides_what_is_further_back():
    mask = np.asarray(Mask(causal=True, window=2).dense(5, 5))[0, 0]
    expected = np.tril(np.ones((5, 5), bool)) & ~np.tril(np.ones((5, 5), bool), -2)
    np.testing.assert_array_equal(mask, expected)


def test_attention_with_dropout_is_attention_on_average():
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (
        jax.random.normal(k, (2, 5, n, 4)) for k, n in zip(keys, (4, 2, 2), strict=True)
    )
    mask = Mask(causal=True)
    exact = applied(AttentionCore(), {}, query, key, value, mask)

    def dropped(seed):
        rngs = {'dropout': seed}
        return applied(AttentionCore(0.2), {}, query, key, value, mask, False, rngs=rngs)

    seeds = jax.random.split(jax.random.key(1), 1000)
    np.testing.assert_allclose(jax.jit(jax.vmap(dropped))(seeds).mean(0), exact, atol=0.1)
    nearly_none = applied(
        AttentionCore(1e-9), {}, query, key, value, mask, False, rngs={'dropout': seeds[0]}
    )
    np.testing.assert_allclose(nearly_none, exact, atol=1e-5)


_SHAPES = {  # the axes of a mask or a bias: batch, heads, queries, keys
    'causal': (1, 1, 11, 11),
    'padding': (2, 1, 1, 11),
    'packed': (2, 1, 11, 11),
    'by head': (1, 4, 11, 11),
}


@pytest.mark.parametrize('softcap', [None, 2.0], ids=['free', 'bounded'])
@pytest.mark.parametrize('shape', _SHAPES.values(), ids=_SHAPES)
def test_long_rows_attend_in_blocks_as_they_would_at_once(shape, softcap, monkeypatch):
    keys = jax.random.split(jax.random.key(0), 5)
    query, key, value = (
        jax.random.normal(k, (2, 11, n, 4)) for k, n in zip(keys, (4, 2, 2), strict=False)
    )
    mask = Mask(array=jax.random.bernoulli(keys[3], 0.6, shape).at[..., 0].set(True))
    bias = jax.random.normal(keys[4], shape)

    def attended(query, key, value, bias):
        return applied(AttentionCore(softcap=softcap), {}, query, key, value, mask, True, bias)

    def at_once_and_gradients():
        loss = lambda *args: jnp.sin(attended(*args)).sum()  # noqa: E731
        args = query, key, value, bias
        return attended(*args), jax.grad(loss, (0, 1, 2, 3))(*args)

    expected = at_once_and_gradients()
    monkeypatch.setattr(plain, 'BLOCK', 4)  # of 11 queries the last block is a short one
    found = at_once_and_gradients()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 2e-6), found, expected)


def test_all_scores_of_a_long_row_are_never_there():
    """The compiled gradient of 1024 queries holds the scores of 256 at the most."""
    query, mask = jnp.ones((1, 1024, 2, 4)), Mask(causal=True)

    def loss(query, length):
        core = AttentionCore()
        return applied(core, {}, query[:, :length], query, query, mask).sum()

    largest = {}
    for length in (256, 1024):
        compiled = jax.jit(jax.grad(loss), static_argnums=1).lower(query, length).compile()
        largest[length] = max(map(math.prod, shapes(compiled, r'f32\[([\d,]+),1024\]')))
    assert largest[1024] == largest[256] == 2 * 256


def test_each_block_drops_probabilities_of_its_own(monkeypatch):
    monkeypatch.setattr(plain, 'BLOCK', 4)
    same = jnp.ones((1, 8, 1, 4))  # every query and key alike: only what is dropped differs
    value = jax.random.normal(jax.random.key(1), (1, 8, 1, 4))
    rngs = {'dropout': jax.random.key(0)}
    dropped = applied(AttentionCore(0.5), {}, same, same, value, None, False, rngs=rngs)
    assert np.unique(np.asarray(dropped[0, :, 0]).round(5), axis=0).shape[0] == 8
