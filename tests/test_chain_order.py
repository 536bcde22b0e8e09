"""Which order of a chain works, and what a message says about one that does not."""

import numpy as np
import pytest

import peftjax
from tests.algebra import KEY, X, assert_close, assert_raises, mlp

LORA = peftjax.lora(rank=2, targets=r'hidden')
PARTS = {
    'pissa': peftjax.lora(rank=2, init='pissa', targets=r'hidden'),
    'olora': peftjax.lora(rank=2, init='olora', targets=r'hidden'),
    'loftq': peftjax.loftq(rank=2, targets=r'hidden'),
}


@pytest.mark.parametrize('name', PARTS)
def test_a_method_that_takes_a_part_of_a_leaf_comes_first_in_a_chain(name):
    part = PARTS[name]
    for before, said in (
        (LORA, 'write the later one earlier in the chain'),
        (peftjax.select(r'hidden/kernel'), 'leave that leaf out'),
        (peftjax.full(), 'leave that leaf out'),
    ):
        tx = peftjax.chain(before, part)
        assert_raises(ValueError, lambda t=tx: t.init(KEY, mlp()), "'hidden/kernel'", said)
    elsewhere = peftjax.lora(rank=2, targets=r'out')
    for tx in (peftjax.chain(part, LORA), peftjax.chain(elsewhere, part)):
        adapter, frozen = tx.init(KEY, mlp())
        plain = mlp().apply(mlp().params, X)
        adapted = peftjax.adapt(mlp(), tx)(adapter, frozen, X)
        assert_close(adapted, plain, 0.2 if name == 'loftq' else 1e-5)
        whole = frozen._replace(params=peftjax.dequantize(frozen.params))
        assert_close(adapted, mlp().apply(tx.merge(adapter, whole), X))


PISSA, OUT = PARTS['pissa'], peftjax.lora(rank=2, init='pissa', targets=r'out')
GATED = peftjax.gated(LORA)
IN_NO_ORDER = {
    **{f'{one}, {two}': (PARTS[one], PARTS[two]) for one in PARTS for two in PARTS},
    'three': (PISSA, LORA, PARTS['olora']),
    'three, the parts first': (PARTS['olora'], PISSA, LORA),
    'intrinsic': (peftjax.intrinsic(dimension=4), PISSA),
    'intrinsic, behind': (PISSA, peftjax.intrinsic(dimension=4)),
    'fish mask': (peftjax.fish_mask({'hidden/kernel': np.array([1, 2], np.int32)}), PISSA),
    'gated': (LORA, peftjax.gated(PISSA)),
    'gated, in front': (peftjax.gated(PISSA), LORA),
    'select': (PISSA, peftjax.select(r'hidden/kernel')),
    'select, twice': (peftjax.select(r'hidden/kernel'), peftjax.select(r'hidden/.*')),
    'select and full': (peftjax.select(r'hidden/kernel'), peftjax.full()),
    'gated, twice': (GATED, GATED),
    'gated, twice, and a part elsewhere': (GATED, GATED, OUT),
}
SELECT, INTRINSIC = peftjax.select(r'hidden/kernel'), peftjax.intrinsic(dimension=4)
BOTH = peftjax.chain(LORA, OUT)
# What is refused, and what is advised in its place.
BY_ORDER = {
    'lora': ((LORA, PISSA), (PISSA, LORA)),
    'a chain': ((BOTH, PISSA), (PISSA, BOTH)),
    'select': ((LORA, SELECT, OUT), (SELECT, LORA, OUT)),
    'intrinsic': ((LORA, INTRINSIC), (INTRINSIC, LORA)),
    'gated': ((GATED, LORA), (LORA, GATED)),
    'gated, behind a part': ((PISSA, GATED, LORA), (PISSA, LORA, GATED)),
}


@pytest.mark.parametrize('name', IN_NO_ORDER)
def test_no_order_is_advised_where_none_helps(name):
    """A message that says to change the order would send a user in a circle."""
    tx = peftjax.chain(*IN_NO_ORDER[name])
    with pytest.raises(ValueError, match='leave that leaf out of the targets of one') as error:
        tx.init(KEY, mlp())
    assert not any(word in str(error.value) for word in ('first', 'last', 'write the later one'))
    assert "'hidden/kernel'" in str(error.value)


@pytest.mark.parametrize('name', BY_ORDER)
def test_the_order_that_is_advised_is_taken(name):
    refused, advised = BY_ORDER[name]
    with pytest.raises(ValueError, match='write the later one earlier in the chain'):
        peftjax.chain(*refused).init(KEY, mlp())
    peftjax.chain(*advised).init(KEY, mlp())


def test_a_transform_that_takes_a_leaf_and_has_no_rule_comes_first_too():
    """Half of the kernel goes; nothing acts on what is left."""

    def halved(params, adapter, own):
        del adapter, own
        return {**params, 'hidden': {**params['hidden'], 'kernel': params['hidden']['kernel'] / 2}}

    silent = peftjax.PeftTransform(lambda key, model: {}, lambda adapter, own: {}, rest=halved)
    with pytest.raises(ValueError, match='takes .hidden/kernel., or a part of it'):
        peftjax.chain(LORA, silent).init(KEY, mlp())
    peftjax.chain(silent, LORA).init(KEY, mlp())
