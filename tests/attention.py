"""Attention in float64 by its definition, and the calls that every kernel is held against."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.masks import Mask

BATCH, HEADS, SHARED, WIDTH = 2, 4, 2, 16


class Case(NamedTuple):
    """One call: T queries, S keys behind the prefix of the mask."""

    queries: int
    keys: int
    mask: Mask
    bias: Any = None
    softcap: float | None = None
    shared: int = SHARED

    def operands(self, dtype: Any = np.float32) -> tuple[Any, ...]:
        """query, key, value, and a cotangent that is zero for queries which see nothing."""
        draw = np.random.default_rng(0).normal
        query, key, value, slope = (draw(size=shape) for shape in self.shapes())
        slope = slope * seeing(self)
        return tuple(jnp.asarray(x, dtype) for x in (query, key, value, slope))

    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Those of query, key, value and the cotangent."""
        longer = self.mask.prefix + self.keys
        shapes = [(self.queries, HEADS), (longer, self.shared), (longer, self.shared)]
        return [(BATCH, length, heads, WIDTH) for length, heads in [*shapes, shapes[0]]]


def seen(case: Case) -> np.ndarray:
    """bool [B, 1, T, prefix + S], one pair after another, as the docstring of `Mask` says it."""
    mask = jax.tree.map(np.asarray, case.mask)
    found = np.zeros((BATCH, 1, case.queries, mask.prefix + case.keys), bool)

    def sees(row: int, query: int, key: int) -> bool:
        slot, place = key - mask.prefix, query + (0 if mask.offset is None else int(mask.offset))

        def of(array: np.ndarray) -> np.ndarray:
            return array[row if len(array) > 1 else 0]

        return slot < 0 or all(
            (
                not mask.causal or slot <= place,
                mask.window is None
                or (mask.windowed is not None and not mask.windowed)
                or place - slot < mask.window,
                mask.valid is None or of(mask.valid)[slot],
                mask.segments is None or of(mask.segments)[query] == of(mask.segments)[slot],
                mask.array is None or of(mask.array)[0, query, slot],
            )
        )

    for place in np.ndindex(*found.shape):
        found[place] = sees(place[0], *place[2:])
    return found


def seeing(case: Case) -> np.ndarray:
    """bool [B, T, 1, 1]: which queries see a key."""
    return np.any(seen(case), axis=3)[:, 0, :, None, None]


def attended(
    case: Case, sees: np.ndarray, query: Any, key: Any, value: Any, bias: Any
) -> np.ndarray:
    """The result in float64 for arrays in float64; `sees` is that of `seen`."""
    key, value = (np.repeat(x, HEADS // case.shared, axis=2) for x in (key, value))
    scores = np.einsum('btnh,bsnh->bnts', query, key) / np.sqrt(WIDTH)
    if case.softcap is not None:
        scores = case.softcap * np.tanh(scores / case.softcap)
    scores = np.where(sees, scores + (0.0 if bias is None else bias), -1e30)
    weights = np.exp(scores - scores.max(axis=3, keepdims=True))
    weights /= weights.sum(axis=3, keepdims=True)
    return np.einsum('bnts,bsnh->btnh', weights, value)


def right_padded(queries: int) -> np.ndarray:
    return np.arange(queries)[None] < np.array([queries, queries // 2])[:, None]


def left_padded(queries: int) -> np.ndarray:
    return np.arange(queries)[None] >= np.array([queries // 3, 0])[:, None]


def packed(queries: int) -> np.ndarray:
    return np.array([[3], [1]]) + np.arange(queries)[None] // np.array([[5], [queries // 2]])


def _mask(causal: bool = False, window: int | None = None, prefix: int = 0, **arrays: Any) -> Mask:
    return Mask(causal, window, prefix, **jax.tree.map(jnp.asarray, arrays))


def structures(queries: int) -> dict[str, Case]:
    """Every structure of self-attention, of as many queries."""
    right, left, segments = right_padded(queries), left_padded(queries), packed(queries)
    random = np.random.default_rng(1).random((BATCH, 1, queries, queries)) < 0.5
    square = {
        'all': _mask(),
        'causal': _mask(causal=True),
        'window': _mask(causal=True, window=3),
        'a window that holds': _mask(causal=True, window=3, windowed=np.array(True)),
        'a window that does not hold': _mask(causal=True, window=3, windowed=np.array(False)),
        'padded': _mask(valid=right),
        'causal, padded on the right': _mask(causal=True, valid=right),
        'causal, padded on the left': _mask(causal=True, valid=left),
        'all rows padded alike': _mask(causal=True, valid=right[1:]),
        'packed': _mask(causal=True, segments=segments),
        'packed and padded': _mask(causal=True, segments=segments, valid=right),
        'packed with a window': _mask(causal=True, segments=segments, window=3),
        'prefix': _mask(causal=True, prefix=4),
        'prefix, padded': _mask(causal=True, prefix=4, valid=left),
        'prefix, packed': _mask(causal=True, prefix=4, segments=segments),
        'prefix and window': _mask(causal=True, prefix=4, window=3),
        'prefix that all see': _mask(prefix=4, valid=right),
        'array': _mask(array=random | np.eye(queries, dtype=bool)),
        'causal array': _mask(causal=True, array=random | np.eye(queries, dtype=bool)),
    }
    cross = {
        'other keys': _mask(valid=right_padded(7)),
        'other keys behind a prefix': _mask(valid=left_padded(7), prefix=3),
    }
    return {
        name: Case(queries, 7 if name in cross else queries, mask)
        for name, mask in {**square, **cross}.items()
    }
