"""Scores of retrieval: how near to a query its right texts are, among all texts of a split."""

from collections.abc import Sequence

import numpy as np

from peftjax.train.metrics.labels import Compute
from peftjax.train.task import Outputs

_ROWS = 1024  # queries that are compared at a time


def right_ranks(outputs: Outputs) -> np.ndarray:
    """The rank of each query's nearest right candidate by cosine; 1 is the nearest of all.

    The candidates are the different positive texts of the split. The right ones are the query's own
    positive, and all of its group if groups are known. A candidate with the query's own text is
    left out. Wrong candidates as near as the right one rank before it, so that equal vectors earn
    nothing.

    Args:
        outputs: for each example, 'anchors' and 'positives' float [D]; 'text' and 'text:1', numbers
            of the anchor's and the positive's text; and 'group', below 0 if it is not known.

    Example:
        >>> outputs = {
        ...     'anchors': [np.array([1.0, 0.1]), np.array([0.2, 0.1])],
        ...     'positives': [np.array([1.0, 0.0]), np.array([0.0, 1.0])],
        ...     'text': [0, 1], 'text:1': [2, 3], 'group': [-1, -1]}
        >>> right_ranks(outputs).tolist()
        [1, 2]
    """
    queries = _unit(outputs['anchors'])
    texts, owns, groups = (np.asarray(outputs[name]) for name in ('text', 'text:1', 'group'))
    names, places = np.unique(owns, return_index=True)
    candidates, kinds = _unit(outputs['positives'])[places], groups[places]
    ranks = []
    for start in range(0, len(queries), _ROWS):
        here = slice(start, start + _ROWS)
        near = queries[here] @ candidates.T
        group = groups[here][:, None]
        right = names[None] == owns[here][:, None]
        right = right | ((group >= 0) & (group == kinds[None]))
        left_out = (names[None] == texts[here][:, None]) & (names[None] != owns[here][:, None])
        best = np.where(right & ~left_out, near, -np.inf).max(1, keepdims=True)
        ranks.append(1 + ((near >= best) & ~right & ~left_out).sum(1))
    return np.concatenate(ranks)


def recall_at(count: int) -> Compute:
    """The share of queries that have a right candidate among the nearest `count`."""
    return lambda outputs: float(np.mean(right_ranks(outputs) <= count))


def reciprocal_rank(outputs: Outputs) -> float:
    """The mean of 1 / rank of the nearest right candidate (MRR)."""
    return float(np.mean(1.0 / right_ranks(outputs)))


def _unit(vectors: Sequence[np.ndarray]) -> np.ndarray:
    wide = np.asarray(vectors, np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)
