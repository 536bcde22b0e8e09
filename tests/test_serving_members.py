"""Which adapters go into one bank: what alone says how an adapter begins does not keep it out."""

import functools

import jax
import numpy as np
import pytest

import peftjax
from peftjax import serving, testing
from peftjax.core import paths
from peftjax.serving.widths import check_alike
from peftjax.testing.measures import assert_close
from tests.contract_models import IDS, MODELS
from tests.rows import METHODS

MLP = testing.tiny_mlp()
X = jax.random.normal(jax.random.key(9), (4, 4))


@functools.cache
def _model():
    return MODELS['linen scanned']()


def _exactly(model, targets):
    """The same targets, each path written out."""
    for match in (model.sites.match_leaves, model.sites.match_modules):
        try:
            found = match(targets)
        except ValueError:
            continue
        return paths.exactly(getattr(each, 'path', each) for each in found)
    raise AssertionError(targets)


# A transform of functions is like itself alone.
@pytest.mark.sampled
@pytest.mark.parametrize('method', sorted(set(METHODS) - {'weightwise without a route'}))
def test_an_adapter_means_the_same_to_a_transform_whose_targets_are_spelt_out(method):
    model, row = _model(), METHODS[method]
    make = row.maker(model)
    tx, spelt = make(row.targets), make(_exactly(model, row.targets))
    check_alike(tx, spelt)
    adapter, frozen = tx.init(jax.random.key(0), model)
    one, two = (
        str(jax.make_jaxpr(peftjax.adapt(model, each))(adapter, frozen, ids=IDS))
        for each in (tx, spelt)
    )
    assert one == two


def _member(tx, seed):
    adapter, frozen = tx.init(jax.random.key(seed), MLP)
    return tx, testing.perturb(adapter, seed, 0.5), frozen


def test_adapters_that_began_otherwise_share_a_bank():
    members = [
        _member(peftjax.lora(rank=2, alpha=3, targets=r'.*/kernel', init='gaussian'), 0),
        _member(
            peftjax.lora(
                rank=1,
                targets=['hidden', 'out'],
                rank_pattern={r'out/.*': 3},
                dtype=np.dtype('float32'),
            ),
            1,
        ),
    ]
    wide = peftjax.lora(rank=3, targets=r'.*/kernel')
    bank, frozen = serving.bank(MLP, members, transform=wide)
    mixed = serving.adapt(MLP)(bank, [2, 1, 2, 0], frozen, X)
    for row, slot in enumerate((2, 1, 2)):
        tx, adapter, beside = members[slot - 1]
        assert_close(mixed[row], peftjax.adapt(MLP, tx)(adapter, beside, X)[row], 1e-6)


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        (peftjax.lora(rank=2, targets=r'out/kernel'), 'that the bank lacks'),
        (peftjax.lora(rank=2, targets=r'hidden/kernel', dtype='bfloat16'), 'of one method'),
        (peftjax.lora(rank=2, targets=r'hidden/kernel', init='pissa'), 'of one method'),
        (peftjax.lora(rank=2, targets=r'hidden/kernel', materialize=True), 'of one method'),
    ],
)
def test_what_changes_the_program_or_the_numbers_keeps_an_adapter_out(other, message):
    bank, frozen = serving.bank(MLP, [_member(peftjax.lora(rank=2, targets=r'hidden/kernel'), 0)])
    with pytest.raises(ValueError, match=message):
        serving.put(MLP, bank, frozen, 1, _member(other, 1))
