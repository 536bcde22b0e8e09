"""What methods that act on the output of a matrix share: the bias behind it is a part of it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Float

from peftjax.core import paths
from peftjax.core.base import PeftTransform, Rule, WeightAdapter, WeightRule
from peftjax.core.sites import Sites
from peftjax.core.weightwise import check_leaves

Act = Callable[[Mapping[str, Any], Float[jax.Array, '*stack out']], Float[jax.Array, '*stack out']]


def has_bias(sites: Sites, kernel: str) -> bool:
    """Whether the module of that kernel adds a bias."""
    return _bias_of(kernel) in sites.weights


def with_biases(kernels: PeftTransform, act: Act, marker: str) -> PeftTransform:
    """`kernels`, and `act` on the biases of the modules whose entry has an array named `marker`.

    act: `(leaves, biases) -> biases`, on `[*stack, out]`, as `kernels` acts on what the matrix
    returns. A name, since rules see no model and could not tell a module that has no bias.
    """

    def merge(params: Any, adapter: dict[str, WeightAdapter]) -> Any:
        merged = kernels.merge(params, adapter)
        leaves = paths.flatten(params)
        check_leaves(leaves, adapter)
        return paths.replace(
            merged,
            {path: _acted(act, leaves[path], entry) for path, entry in biased(adapter).items()},
        )

    def rules(adapter: dict[str, WeightAdapter]) -> dict[str, Rule]:
        return {
            **kernels.rules(adapter),
            **{path: _rule(act, entry) for path, entry in biased(adapter).items()},
        }

    def biased(adapter: Mapping[str, WeightAdapter]) -> dict[str, WeightAdapter]:
        return {_bias_of(path): entry for path, entry in adapter.items() if marker in entry}

    return kernels._replace(merge=merge, rules=rules)


def _bias_of(kernel: str) -> str:
    return f'{paths.parent(kernel)}/bias'.removeprefix('/')


def _acted(
    act: Act, bias: Float[jax.Array, '*shape'], entry: WeightAdapter
) -> Float[jax.Array, '*shape']:
    rows = bias.reshape(*entry.layout.stack_shape, entry.layout.outputs)
    return act(entry, rows).astype(bias.dtype).reshape(bias.shape)


def _rule(act: Act, entry: WeightAdapter) -> WeightRule:
    return WeightRule(
        (),
        None,
        lambda _, use: use.base(use.x),
        lambda _, matrix: matrix,
        base=lambda leaf: _acted(act, leaf, entry),
    )
