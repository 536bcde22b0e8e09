"""The distance of a tuned encoder from the pretrained one: embeddings and singular vectors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

import peftjax
from peftjax.train.data.batches import collate
from peftjax.train.tasks.base import cutting, encoder_inputs

MATRICES = (('attention', 'query'), ('attention', 'value'), ('ffn', 'output'))
"""The kernels of each layer whose singular vectors are compared. The output of all is the hidden
size, so that their left singular vectors are a complete basis."""


class Drift(NamedTuple):
    """How far the embeddings of some texts drifted in training.

    Attributes:
        distance: mean of 1 - cosine between the new embedding of a text and the pretrained one.
        correlation: Spearman's, between the cosines of all pairs of texts before and after.
    """

    distance: float
    correlation: float


class Encoder:
    """The pretrained encoder, and its embeddings of texts that no model is trained on.

    Args:
        source: of the encoder.
        texts: to embed.
        length: of the texts, in tokens; longer ones are cut.
    """

    def __init__(self, source: str, texts: Sequence[str], length: int):
        model = peftjax.load(source, pooling='mean')
        if model.tokenizer is None:
            raise ValueError(f'{source} has no tokenizer')
        encode = cutting(model.tokenizer, length).encode
        ids = [np.asarray(encode(text).ids, np.int32) for text in texts]
        rows = [{'input_ids': each, 'segment_ids': np.ones_like(each)} for each in ids]
        self._inputs = encoder_inputs(collate(rows, (length,)))
        self._names = tuple(model.params)
        self._apply = jax.jit(lambda params: _unit(model.apply(params, **self._inputs)))
        self._before = np.asarray(self._apply(dict(model.params)))
        self._vectors = {name: left_vectors(each) for name, each in _kernels(model.params).items()}

    def drift(self, params: Mapping[str, Any]) -> Drift:
        """The drift of the embeddings of the texts.

        Args:
            params: of the model; those of a head are ignored.
        """
        after = np.asarray(self._apply({name: params[name] for name in self._names}))
        distance = 1 - float((after * self._before).sum(1).mean())
        above = np.triu_indices(len(after), 1)
        ranks = [rankdata((each @ each.T)[above]) for each in (self._before, after)]
        return Drift(distance, float(np.corrcoef(ranks)[0, 1]))

    def intruders(
        self, params: Mapping[str, Any], top: int, bounds: Sequence[float]
    ) -> dict[str, float]:
        """The mean number of intruder dimensions of a matrix, by bound.

        Args:
            params: of the model.
            top: the number of leading singular vectors of a tuned matrix that are examined.
            bounds: see `intruders`.
        """
        counts = {str(bound): 0.0 for bound in bounds}
        kernels = _kernels(params)
        for name, kernel in kernels.items():
            tuned = left_vectors(kernel)[:, :top]
            for bound in bounds:
                found = intruders(tuned, self._vectors[name], bound)
                counts[str(bound)] += found / len(kernels)
        return counts


def left_vectors(kernel: np.ndarray) -> np.ndarray:
    """Left singular vectors of the map `x -> x @ kernel`, in columns, the greatest value first.

    Args:
        kernel: [inputs, outputs].

    Example:
        >>> left_vectors(np.array([[0.0, 3.0], [1.0, 0.0]])).round(6) ** 2
        array([[0., 1.],
               [1., 0.]])
    """
    wide = kernel.astype(np.float64)
    return np.linalg.eigh(wide.T @ wide)[1][:, ::-1]


def intruders(tuned: np.ndarray, pretrained: np.ndarray, bound: float) -> int:
    """The number of intruder dimensions: vectors that are close to no pretrained singular vector.

    Source: Shuttleworth et al., 2024 (arXiv:2410.21228), algorithm 1.

    Args:
        tuned: singular vectors in columns.
        pretrained: all singular vectors of the pretrained matrix in columns.
        bound: a vector is an intruder if its greatest |cosine| is below this.

    Example:
        >>> even = np.full((4, 1), 0.5)
        >>> intruders(even, np.eye(4), 0.6), intruders(even, np.eye(4), 0.4)
        (1, 0)
    """
    return int((np.abs(tuned.T @ pretrained).max(1) < bound).sum())


def _kernels(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The kernels of `MATRICES`, one for each layer."""
    found = {}
    for block, name in MATRICES:
        for layer, kernel in enumerate(np.asarray(params['layers'][block][name]['kernel'])):
            found[f'{layer}/{block}/{name}'] = kernel
    return found


def _unit(output: Any) -> jax.Array:
    pooled = output.pooler_output
    return pooled / jnp.linalg.norm(pooled, axis=1, keepdims=True)
