"""EVA: LoRA's first factor from the directions in which a layer's inputs vary most."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.train.moments import Moments, moments


class Eva(NamedTuple):
    """What `eva` found, by leaf path.

    Attributes:
        a: `[*stack, in, r]`, orthonormal columns, the strongest direction first: for `lora(init=)`.
        explained: `[*stack, r]`, the share of the inputs' variance along each direction.
    """

    a: dict[str, jax.Array]
    explained: dict[str, jax.Array]

    def ranks(self, budget: int) -> dict[str, int]:
        """Ranks that sum to `budget` and take the directions that explain most: a `rank_pattern`.

        Raises:
            ValueError: a stack of layers shares one leaf and hence one rank; or there are fewer
                directions than `budget`.
        """
        for path, shares in self.explained.items():
            if shares.ndim > 1:
                raise ValueError(
                    f'{path!r} is a stack of {shares.shape[:-1]} layers with one rank for all; '
                    'load the model with its layers in a loop (scan=False) to give each its own'
                )
        found = [
            (-float(share), path) for path, shares in self.explained.items() for share in shares
        ]
        if budget > len(found):
            raise ValueError(
                f'budget is {budget} ranks, but eva found {len(found)} directions; run eva with a '
                'larger rank'
            )
        chosen = [path for _, path in sorted(found)[:budget]]
        return {path: chosen.count(path) for path in self.explained}


def eva(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    *,
    targets: paths.Targets,
    rank: int,
    counted: Callable[[Mapping[str, Any]], jax.Array] | None = None,
) -> Eva:
    r"""Principal directions of the inputs of each targeted matrix, over some batches.

    For inputs `X: [N, in]` of all uses of a matrix, `A: [in, r]` holds the first eigenvectors of
    their covariance. It is summed batch by batch: `in^2` numbers a matrix, and `2 N in^2` FLOPs
    besides the model's own forward and backward pass.

    Args:
        model: a model whose parameters are arrays.
        batches: keyword arguments of the model, each a dict.
        targets: which weights, see `Sites.match_weights`; not lookups, which have no inputs.
        rank: number of directions of each matrix.
        counted: `counted(batch) -> [B, T]`, 1 for tokens that count and 0 for padding, for example
            `lambda batch: batch['attention_mask']`; all count by default.

    Returns:
        `Eva(a, explained)`; write `lora(rank=rank, init=found.a, ...)`.

    Raises:
        ValueError: no batches; the rank is larger than a matrix's input; a target is not used as a
            plain product; or its tokens do not have the shape that `counted` returns.
        TargetError: see `Sites.match_weights`.

    Example:
        >>> batches = [{'x': jax.random.normal(jax.random.key(i), (16, 4))} for i in range(2)]
        >>> mlp = peftjax.testing.tiny_mlp()
        >>> found = eva(mlp, batches, targets=r'hidden', rank=2)
        >>> found.a['hidden/kernel'].shape, found.explained['hidden/kernel'].shape
        ((4, 2), (2,))
        >>> tx = peftjax.lora(rank=2, targets=r'hidden', init=found.a)

    References:
        Paischer et al., EVA, 2024 (arXiv:2410.07170), sections 3.1 and 3.2. The authors' code
        updates a truncated decomposition batch by batch; we decompose the whole covariance, which
        is exact. Their ranks give a layer at most rho times the mean; ours at most `rank`.
    """

    for site in model.sites.match_weights(targets):
        if site.layout is not None and rank > site.layout.inputs:
            raise ValueError(
                f'rank {rank} is larger than the input of {site.path!r}, {site.layout.inputs}'
            )
    total = moments(model, batches, targets=targets, counted=counted)
    found = {path: _directions(entry, rank) for path, entry in total.items()}
    return Eva(
        {path: a for path, (a, _) in found.items()},
        {path: explained for path, (_, explained) in found.items()},
    )


def _directions(
    entry: Moments, rank: int
) -> tuple[Float32[jax.Array, '*stack in {rank}'], Float32[jax.Array, '*stack {rank}']]:
    """The first eigenvectors of the covariance, and their shares of the variance."""
    # In float64, by NumPy, since subtracting the mean from the squares loses digits.
    squares, sums, count = (
        np.asarray(each, np.float64) for each in (entry.squares, entry.sum, entry.rows)
    )
    mean = sums / count[..., None]
    covariance = squares / count[..., None, None] - mean[..., :, None] * mean[..., None, :]
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values[..., ::-1], 0.0)
    shares = values[..., :rank] / np.maximum(values.sum(-1, keepdims=True), 1e-30)
    directions = vectors[..., ::-1][..., :rank]
    return jnp.asarray(directions, jnp.float32), jnp.asarray(shares, jnp.float32)
