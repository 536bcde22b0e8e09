"""Moments of the inputs of a model's layers, summed over batches."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, PRNGKeyArray, Shaped

from peftjax.binding.adapt import adapt
from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.core.rules import Rule
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise


class Moments(NamedTuple):
    """Sums over the inputs `x: [N, in]` of all uses of a matrix, float32, with its stack in front.

    Attributes:
        squares: `[*stack, in, in]`, the sum of `x^T x`. sum: `[*stack, in]`. rows: `[*stack]`, N.
    """

    squares: jax.Array
    sum: jax.Array
    rows: jax.Array


def moments(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    *,
    targets: paths.Targets,
    counted: Callable[[Mapping[str, Any]], jax.Array] | None = None,
) -> dict[str, Moments]:
    """First and second moments of the inputs of each targeted matrix, by leaf path.

    `eva` takes its directions from them, and `gptq` its compensation. They are `in^2` numbers for
    each matrix, and cost `2 N in^2` FLOPs beside the model's forward and backward pass.

    Args:
        model: a model whose parameters are arrays.
        batches: keyword arguments of the model, each a dict.
        targets: which weights, see `Sites.match_weights`; not lookups, which have no inputs.
        counted: `counted(batch) -> [B, T]`, 1 for tokens that count and 0 for padding; all count
            by default.

    Raises:
        ValueError: no batches; a target is not used as a plain product; or its tokens do not have
            the shape that `counted` returns.
        TargetError: see `Sites.match_weights`.

    Example:
        >>> mlp = peftjax.testing.tiny_mlp()
        >>> found = moments(mlp, [{'x': jnp.ones((16, 4))}], targets=r'hidden')
        >>> float(found['hidden/kernel'].rows), found['hidden/kernel'].squares.shape
        (16.0, (4, 4))
    """

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> dict[str, jax.Array]:
        del key, site
        size = matrix.shape[0]
        zeros = jnp.zeros((size, size)), jnp.zeros((size,)), jnp.zeros(())
        return dict(zip(Moments._fields, zeros, strict=True))

    def transform(weights: Shaped[jax.Array, '...'] | None) -> PeftTransform:
        def apply(path: str, leaves: Any, use: Use) -> Float[jax.Array, 'T out']:
            if use.kind != 'dot' or use.transposed:
                raise ValueError(f'{path!r} is used as a {use.kind}, not as a plain product')
            if weights is not None and weights.shape != use.axes:
                raise ValueError(
                    f'counted returns shape {weights.shape}, but the tokens at {path!r} have shape '
                    f'{use.axes}'
                )
            each = jnp.ones(use.x.shape[0]) if weights is None else weights.reshape(-1)
            x = jax.lax.stop_gradient(use.x)
            return _tap(use.forward(use.x), x, each.astype(jnp.float32), dict(leaves))

        found = weightwise(
            init_weight, lambda leaves, matrix: matrix, targets=targets, name='moments'
        )

        def rules(adapter: Any, own: Any) -> dict[str, Rule]:
            return {
                path: dataclasses.replace(rule, apply=functools.partial(apply, path))
                for path, rule in found.rules(adapter, own).items()
            }

        return found.replace(rules=rules)

    total, frozen = transform(None).init(jax.random.key(0), model)

    @jax.jit
    def add(total: Any, frozen: Any, batch: Mapping[str, Any]) -> Any:
        run = adapt(model, transform(None if counted is None else counted(batch)))

        def output(leaves: Any) -> Float32[jax.Array, '']:
            results = jax.tree.leaves(run(leaves, frozen, **batch))
            floats = [leaf for leaf in results if jnp.issubdtype(leaf.dtype, jnp.floating)]
            return jnp.stack([leaf.astype(jnp.float32).sum() for leaf in floats]).sum()

        return jax.tree.map(jnp.add, total, jax.grad(output)(total))

    empty = True
    for batch in batches:
        total, empty = add(total, frozen, batch), False
    if empty:
        raise ValueError('there are no batches; give at least one')
    return {path: Moments(**dict(entry)) for path, entry in total.items()}


@jax.custom_vjp
def _tap(
    result: Float[jax.Array, 'T out'],
    x: Float[jax.Array, 'T in'],
    each: Float32[jax.Array, ' T'],
    sums: dict[str, Any],
) -> Float[jax.Array, 'T out']:
    """Returns `result`; the "gradient" of `sums` is the moments of `x`, its rows weighed by `each`.

    So the reverse pass sums them over uses and loops, separately for each layer of a stack, in any
    model that can be differentiated.
    """
    del x, each, sums
    return result


def _tap_forward(
    result: Float[jax.Array, 'T out'],
    x: Float[jax.Array, 'T in'],
    each: Float32[jax.Array, ' T'],
    sums: Any,
) -> tuple[Any, Any]:
    del sums
    return result, (x, each)


def _tap_backward(
    kept: tuple[Float[jax.Array, 'T in'], Float32[jax.Array, ' T']],
    slope: Float[jax.Array, 'T out'],
) -> tuple[Any, ...]:
    x, each = kept
    wide = x.astype(jnp.float32)
    weighed = wide * each[:, None]
    sums = {
        'squares': jnp.matmul(wide.T, weighed, precision='highest'),
        'sum': weighed.sum(0),
        'rows': each.sum(),
    }
    return slope, jnp.zeros_like(x), jnp.zeros_like(each), sums


_tap.defvjp(_tap_forward, _tap_backward)
