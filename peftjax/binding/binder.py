"""A visitor that applies rules to uses and to calls of modules."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from peftjax.binding import attention, tags
from peftjax.binding.context import Called, Context
from peftjax.binding.uses import Contraction
from peftjax.binding.views import Leaf, Refused
from peftjax.core.errors import AdapterError
from peftjax.core.rules import MatrixRule, ModuleRule
from peftjax.core.tokens import Tokens
from peftjax.core.use import ModuleUse, Use


class Binder:
    """A visitor that puts rules in the place of uses."""

    def __init__(
        self,
        weights: dict[str, MatrixRule],
        modules: dict[str, ModuleRule],
        tokens: Callable[..., Tokens],
    ):
        """`tokens(path, number)`: those that a module sees in one of its calls; or a leaf."""
        self._weights, self._modules = weights, modules
        self._tokens = tokens
        self._count: dict[str, int] = {}

    def _split(self, path: str, state: Any) -> tuple[Any, Any]:
        """The state with a key of its own for this use."""
        leaves, key = state
        count = self._count[path] = self._count.get(path, -1) + 1
        return leaves, None if key is None else jax.random.fold_in(key, count)

    def use(self, leaf: Leaf, contraction: Contraction, plain: Any) -> Any:
        rule = self._weights.get(leaf.path)
        if rule is None:
            return plain()
        facts, layout = contraction.facts(), rule.layout
        forward = (facts.rows, facts.columns) == (layout.rows, layout.columns)
        turned = (facts.rows, facts.columns) == (layout.columns, layout.rows)
        if facts.stack != layout.stack or not (forward or turned):
            raise Refused(
                f'this call contracts its axes {facts.rows} with stack {facts.stack}, '
                f'the example inputs axes {layout.rows} with stack {layout.stack}'
            )
        tokens = functools.partial(self._tokens, leaf.path)

        def apply(leaves: Any, use: Use) -> jax.Array:
            return rule.apply(leaves, use.replace(tokens=tokens))

        return contraction.run(self._split(leaf.path, leaf.state), apply, transposed=not forward)

    def refuse(self, leaf: Leaf, operation: str, reason: str, spread: bool = False) -> None:
        del spread
        if leaf.state is None:  # A quantised leaf without a rule is read there.
            return
        raise AdapterError(
            f'the adapted weight {leaf.path!r} {leaf.shape} cannot be followed '
            f'through {operation} in this call: {reason}. Leave it out of the '
            'targets, or wrap the model with example inputs like this call'
        )

    def module(self, called: Called, context: Context) -> jax.Array:
        tag, inputs, around, output = called
        rule = self._modules.get(tag.path)
        if rule is None:
            return output
        leaves, key = self._split(tag.path, context.modules[tag.path])
        core = None if tag.core is None else attention.use_of(tag.core, inputs, tag.path)
        inputs = inputs if core is None else (core.query, core.key, core.value)
        number = self._count[tag.path]
        tokens = functools.partial(self._tokens, tag.path, number)
        use = ModuleUse(inputs, output, key, tokens, around, core, number)
        result = rule.apply(leaves, use)
        if result.shape != output.shape:
            raise ValueError(
                f'the rule for module {tag.path!r} returned shape {result.shape} for '
                f'an output of {output.shape}'
            )
        return result.astype(output.dtype)

    def opaque(self, tag: tags.Tag, reason: str) -> None:
        if tag.path in self._modules:
            raise AdapterError(f'module {tag.path!r} cannot be adapted in this call: {reason}')
