"""(IA)³: trained vectors that scale keys, values and the inputs of feed-forward outputs."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.promotion import widened
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.biases import with_biases


class Leaves(TypedDict, total=False):
    input: Float[jax.Array, ' in']
    output: Float[jax.Array, ' out']
    output_and_bias: Float[jax.Array, ' out']


@described
def ia3(
    *,
    targets: paths.Targets,
    feedforward: paths.Targets = (),
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""(IA)³: `y' = l * (x W + b)` at `targets`, `y = (l * x) W + b` at `feedforward`.

    For `W: [in, out]`, `l: [out]` scales the output of a matrix of `targets`, including its bias,
    and `l: [in]` scales the input of a matrix of `feedforward`. The paper has keys and values in
    `targets` and the second matrix of the feed-forward block in `feedforward`: on BERT
    `targets=r'layers/attention/(key|value)'`, `feedforward=r'layers/ffn/output'`, on Llama
    `r'layers/self_attn/[kv]_proj'` and `r'layers/mlp/down_proj'`. At the start `l = 1`, the
    identity. It trains `out` or `in` numbers for each matrix, costs `T out` or `T in` FLOPs in the
    forward pass (six times as much in a step), and merges into matrix and bias.

    Args:
      targets: weights whose output is scaled, see `Sites.match_weights`.
      feedforward: weights whose input is scaled; none by default.
      dtype: of `l`; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {name: [*stack, out or in]}}`, the name saying what
      is scaled: `'output'` of a matrix alone, `'output_and_bias'` where its module has a bias,
      `'input'`.

    Raises:
      TargetError: from `init`, see `Sites.match_weights`; a convolution in `feedforward`.
      ValueError: from `init`, if `targets` and `feedforward` share a weight.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.ia3(targets=r'hidden', feedforward=r'out')
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> {path: jax.tree.map(jnp.shape, dict(entry)) for path, entry in adapter.items()}
    {'hidden/kernel': {'output_and_bias': (8,)}, 'out/kernel': {'input': (8,)}}

    References:
      Liu et al., Few-Shot Parameter-Efficient Fine-Tuning, 2022 (arXiv:2205.05638), section 3.3.
      AdapterHub scales the output of the first feed-forward matrix, before the activation; list
      that one in `targets` for the same. With grouped-query attention `l` has the width of the
      keys, not of the queries.
    """
    outputs = paths.Selection(targets)
    inputs = paths.Selection(feedforward) if feedforward else None

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> dict[str, Float[jax.Array, ' side']]:
        del key
        if inputs is None or not site.is_meant_by(inputs):
            name = 'output_and_bias' if site.bias else 'output'
            return {name: jnp.ones(matrix.shape[1], dtype)}
        if site.is_meant_by(outputs):
            raise ValueError(
                f'targets and feedforward both match {site.path!r}; a weight has its output scaled '
                'or its input: take it out of one of the two patterns'
            )
        if 'conv' in site.uses:
            raise paths.TargetError(
                f'feedforward matches {site.path!r} {site.shape}, a convolution, whose inputs are '
                'channels under each tap of the kernel; write it into targets, which scales what '
                'it returns'
            )
        return {'input': jnp.ones(matrix.shape[0], dtype)}

    kernels = weightwise(
        init_weight,
        _merge,
        _apply,
        targets=(outputs,) if inputs is None else (outputs, inputs),
        name='ia3',
        materialize=materialize,
    )
    return with_biases(kernels, _scaled, 'output_and_bias')


def _scaled(
    leaves: Mapping[str, Any], biases: Float[jax.Array, '*stack out']
) -> Float[jax.Array, '*stack out']:
    biases, scale = widened((biases, leaves['output_and_bias']))
    return biases * scale


def _output_of(leaves: Mapping[str, Any]) -> Float[jax.Array, ' out'] | None:
    return next((leaves[name] for name in ('output', 'output_and_bias') if name in leaves), None)


def _merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
    output = _output_of(leaves)
    scale = leaves['input'][:, None] if output is None else output[None]
    return matrix * scale


def _apply(leaves: Leaves, use: Use) -> Float[jax.Array, '...']:
    if use.kind != 'dot':
        leaves, matrix = widened((leaves, use.weight()))
        return use.product(use.x, _merge(leaves, matrix))
    output = _output_of(leaves)
    scale = (leaves['input'] if output is None else output)[None]
    scales_operand = (output is None) != use.transposed
    if scales_operand:
        return use.forward(use.x * scale.astype(use.x.dtype))
    result = use.forward(use.x)
    return result * scale.astype(result.dtype)
