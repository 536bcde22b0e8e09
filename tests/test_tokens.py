"""Tokens of packed rows."""

import jax.numpy as jnp

from peftjax.core.tokens import Tokens, segment_positions


def test_positions_in_packed_rows_are_ranks_in_their_examples():
    ids = jnp.asarray([[1, 1, 2, 2, 1, 1], [0, 0, 0, 3, 3, 3], [5, 4, 5, 4, 4, 5]])
    expected = [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 1, 0]]
    for segments in (ids, ids.astype(jnp.uint8)):
        found = segment_positions(segments)
        assert found.dtype == jnp.int32
        assert found.tolist() == expected
        assert Tokens(segments=segments).ranks(ids.shape)[0].tolist() == expected
