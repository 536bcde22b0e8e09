"""EVA: LoRA's first factor from the directions in which a layer's inputs vary most."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.binding.adapt import adapt
from peftjax.core import paths
from peftjax.core.base import Model, PeftTransform, Use
from peftjax.core.sites import WeightSite
from peftjax.core.weightwise import weightwise


class Eva(NamedTuple):
    """What `eva` found, by leaf path.

    Attributes:
        a: `[*stack, in, r]`, orthonormal columns, the strongest direction first: for `lora(init=)`.
        explained: `[*stack, r]`, the share of the variance of its layer's inputs along each.
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
            raise ValueError(f'{budget} ranks of {len(found)} directions; run eva with more')
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
        model: with arrays as parameters.
        batches: keyword arguments of the model, each a dict.
        targets: which weights, see `Sites.match_weights`; of lookups there are no inputs.
        rank: directions of each matrix.
        counted: `counted(batch) -> [B, T]`, 1 for tokens that count and 0 for padding, for example
            `lambda batch: batch['attention_mask']`; all count by default.

    Returns:
        `Eva(a, explained)`; write `lora(rank=rank, init=found.a, ...)`.

    Raises:
        ValueError: no batches; the rank is larger than a matrix's input; a target is not used as a
            plain product; or its tokens are not those of `counted`.
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

    def init_weight(key: jax.Array, matrix: jax.Array, site: WeightSite) -> dict[str, jax.Array]:
        del key
        size = matrix.shape[0]
        if rank > size:
            raise ValueError(f'rank {rank} is larger than the input of {site.path!r}, {size}')
        zeros = jnp.zeros((size, size)), jnp.zeros((size,)), jnp.zeros(())
        return dict(zip(('squares', 'sum', 'count'), zeros, strict=True))

    def transform(weights: jax.Array | None) -> PeftTransform:
        def apply(leaves: Any, use: Use, path: str) -> jax.Array:
            if use.kind != 'dot' or use.transposed:
                raise ValueError(f'{path!r} is used as a {use.kind}, not as a plain product')
            if weights is not None and weights.shape != use.tokens:
                raise ValueError(
                    f'counted gives {weights.shape}, but {path!r} sees tokens {use.tokens}'
                )
            each = jnp.ones(use.x.shape[0]) if weights is None else weights.reshape(-1)
            x = jax.lax.stop_gradient(use.x)
            return _tap(use.base(use.x), x, each.astype(jnp.float32), dict(leaves))

        return weightwise(init_weight, lambda leaves, matrix, path: matrix, apply, targets=targets)

    total = transform(None).init(jax.random.key(0), model)

    @jax.jit
    def add(total: Any, params: Any, batch: Mapping[str, Any]) -> Any:
        run = adapt(model, transform(None if counted is None else counted(batch)))

        def output(leaves: Any) -> jax.Array:
            results = jax.tree.leaves(run(leaves, params, **batch))
            floats = [leaf for leaf in results if jnp.issubdtype(leaf.dtype, jnp.floating)]
            return jnp.stack([leaf.astype(jnp.float32).sum() for leaf in floats]).sum()

        return jax.tree.map(jnp.add, total, jax.grad(output)(total))

    empty = True
    for batch in batches:
        total, empty = add(total, model.params, batch), False
    if empty:
        raise ValueError('there are no batches to take directions from')
    found = {path: _directions(entry, rank) for path, entry in total.items()}
    return Eva(
        {path: a for path, (a, _) in found.items()},
        {path: explained for path, (_, explained) in found.items()},
    )


@jax.custom_vjp
def _tap(result: jax.Array, x: jax.Array, each: jax.Array, sums: dict[str, Any]) -> jax.Array:
    """`result`; the "gradient" of `sums` is what `x` adds to them, its rows weighed by `each`.

    Sums over uses, loops and stacks then come out of the reverse pass where the leaves lie, from
    any model that can be differentiated.
    """
    del x, each, sums
    return result


def _tap_forward(result: jax.Array, x: jax.Array, each: jax.Array, sums: Any) -> tuple[Any, Any]:
    del sums
    return result, (x, each)


def _tap_backward(kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[Any, ...]:
    x, each = kept
    wide = x.astype(jnp.float32)
    weighed = wide * each[:, None]
    sums = {
        'squares': jnp.matmul(wide.T, weighed, precision='highest'),
        'sum': weighed.sum(0),
        'count': each.sum(),
    }
    return slope, jnp.zeros_like(x), jnp.zeros_like(each), sums


_tap.defvjp(_tap_forward, _tap_backward)


def _directions(entry: Mapping[str, jax.Array], rank: int) -> tuple[jax.Array, jax.Array]:
    """The first eigenvectors of the covariance, and their shares of the variance."""
    # In float64, by NumPy: the mean is subtracted from a sum of squares.
    squares, sums, count = (
        np.asarray(entry[name], np.float64) for name in ('squares', 'sum', 'count')
    )
    mean = sums / count[..., None]
    covariance = squares / count[..., None, None] - mean[..., :, None] * mean[..., None, :]
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values[..., ::-1], 0.0)
    shares = values[..., :rank] / np.maximum(values.sum(-1, keepdims=True), 1e-30)
    directions = vectors[..., ::-1][..., :rank]
    return jnp.asarray(directions, jnp.float32), jnp.asarray(shares, jnp.float32)
