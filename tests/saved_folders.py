"""What tests of `peftjax.save` and `restore` share."""

import functools

import jax

import peftjax
from peftjax.core import paths
from peftjax.interop.folder import arrays as files
from peftjax.testing import tiny_mlp

MLP = functools.cache(tiny_mlp)


def assert_same(restored, adapter, frozen):
    """Equal in structure, dtypes and every bit."""
    one, other = (adapter, frozen), (restored.adapter, restored.frozen)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    leaves = paths.flatten(other)
    for path, leaf in paths.flatten(one).items():
        assert files.same(leaf, leaves[path]), path


def round_trip(folder, model, transform, adapter, frozen, **options):
    peftjax.save(folder, model, transform, adapter, frozen, **options)
    given = {} if transform.about else {'transform': transform}
    restored = peftjax.restore(folder, model, **given)
    assert_same(restored, adapter, frozen)
    return restored
