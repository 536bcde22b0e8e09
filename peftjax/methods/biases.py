"""Shared by methods that scale or turn the output of a matrix, which includes its bias."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Float

from peftjax.core import paths
from peftjax.core.entries import Adapter, Entry
from peftjax.core.rules import LeafRule, Rule
from peftjax.core.transform import PeftTransform

Act = Callable[[Mapping[str, Any], Float[jax.Array, '*stack out']], Float[jax.Array, '*stack out']]


def with_biases(kernels: PeftTransform, act: Act, marker: str) -> PeftTransform:
    """`kernels`, and `act` on the biases of the modules whose entry has an array named `marker`.

    act: `(leaves, biases) -> biases`, on `[*stack, out]`, as `kernels` acts on what the matrix
    returns. The mark is a name, because rules do not see the model and cannot know whether a module
    has a bias.
    """

    def rules(adapter: Adapter, own: Any) -> dict[str, Rule]:
        found = dict(kernels.rules(adapter, own))
        for path, entry in adapter.items():
            if marker in entry:
                found[f'{paths.parent(path)}/bias'.removeprefix('/')] = _rule(act, entry)
        return found

    return kernels.replace(rules=rules)


def _rule(act: Act, entry: Entry) -> LeafRule:
    layout = entry.layout
    assert layout is not None

    def replace(bias: Float[jax.Array, '*shape']) -> Float[jax.Array, '*shape']:
        rows = bias.reshape(*layout.stack_shape, layout.outputs)
        return act(entry, rows).reshape(bias.shape)

    return LeafRule(replace)
