"""GPTQ: a base in four bits, rounded with regard to the inputs of its layers."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from peftjax.core import paths
from peftjax.core.layout import Layout
from peftjax.core.model import Model
from peftjax.core.quantized import QuantizedArray, is_quantized, one_matrix
from peftjax.quantize.compensated import pack_compensated
from peftjax.quantize.model import quantizable
from peftjax.quantize.nf4 import NF4
from peftjax.train.moments import moments

_SCHEME = NF4()


def gptq(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    *,
    scheme: NF4 = _SCHEME,
    targets: paths.Targets | None = None,
    counted: Callable[[Mapping[str, Any]], jax.Array] | None = None,
    damping: float = 0.01,
) -> Model:
    r"""The model in NF4, with each matrix rounded so that its outputs on `batches` change little.

    With the inputs `X: [N, in]` of all uses of a matrix `W: [in, out]`, the codes keep
    `|| X (W - Q) ||^2` small: the rows of `W` are rounded one after another, those of the largest
    inputs first, and the rows that follow move by `(X^T X)^{-1}` to make up for the error. Format,
    bytes, speed and use are those of `peftjax.quantize(model, scheme)`; only the codes differ.

    The moments of all targets are in memory at once: `in^2` float32 numbers for each matrix. If
    that is too much, call `gptq` several times with some of the targets; each call takes the inputs
    from the model that it is given.

    Args:
        model: a model whose parameters are arrays; quantised leaves stay as they are.
        batches: keyword arguments of the model, each a dict: about ten thousand tokens of the kind
            that it will read.
        scheme: `NF4` with any block; a block of 16 takes 0.141 of float32's bytes, 64 0.129.
        targets: as in `peftjax.quantize`; None takes every matrix of the layers.
        counted: `counted(batch) -> [B, T]`, 1 for tokens that count and 0 for padding; all count
            by default.
        damping: added to the diagonal of `X^T X`, as a multiple of the diagonal's mean.

    Returns:
        The model, with a `QuantizedArray` for each target.

    Raises:
        ValueError: no batches; damping that is not above 0; a target is not used as a plain
            product; its tokens do not have the shape of `counted`; or inputs that are not finite.
        TargetError: a pattern that matches no matrix.

    Example:
        >>> batches = [{'x': jax.random.normal(jax.random.key(i), (16, 4))} for i in range(2)]
        >>> small = gptq(peftjax.testing.tiny_mlp(), batches, targets=r'hidden')
        >>> small.params['hidden']['kernel']
        QuantizedArray(nf4, (4, 8) float32, 272 bytes)

    References:
        Frantar et al., GPTQ, 2022 (arXiv:2210.17323), section 3, algorithm 1. The authors' code
        goes layer by layer, with inputs that come from the layers quantised before; ours takes all
        inputs from the given model, in one pass. The order is `act_order` with `static_groups` of
        the authors' code, which the paper does not have. The scales are those of NF4 (QLoRA,
        arXiv:2305.14314) for the matrix before rounding.
    """
    if not damping > 0.0:
        raise ValueError(f'damping must be above 0, got {damping!r}')
    leaves = paths.flatten(model.params)
    chosen = [path for path in quantizable(model.sites, targets) if not is_quantized(leaves[path])]
    if not chosen:
        return model
    found = moments(model, batches, targets=paths.exactly(chosen), counted=counted)
    packed = {}
    for path in chosen:
        layout = model.sites.weights[path].layout
        assert layout is not None
        squares = found.pop(path).squares
        if not bool(jnp.isfinite(squares).all()):
            raise ValueError(f'the inputs of {path!r} are not finite, or too large for float32')
        packed[path] = _packed(leaves[path], squares, layout, scheme, damping)
    return model.replace(params=paths.replace(model.params, packed))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _packed(
    leaf: Float[jax.Array, '...'],
    squares: Float32[jax.Array, '*stack in in'],
    layout: Layout,
    scheme: NF4,
    damping: float,
) -> QuantizedArray:
    one = one_matrix(layout)
    matrices = jnp.swapaxes(layout.to_matrix(leaf), -1, -2)
    stack = matrices.shape[:-2]
    flat = [each.reshape(-1, *each.shape[-2:]) for each in (matrices, squares)]
    # One matrix after another, since its triangular factors can be as large as the matrix.
    arrays = jax.lax.map(lambda each: pack_compensated(each[0], each[1], scheme, damping), flat)
    arrays = {name: each.reshape(*stack, *each.shape[1:]) for name, each in arrays.items()}
    return QuantizedArray(arrays, scheme, one, leaf.dtype)
