"""Finds the sites of a model by evaluating its program once, abstractly."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.binding import attention, tags, uses, views
from peftjax.binding.calls import Call
from peftjax.binding.context import Called, Context, plain
from peftjax.binding.interpret import run
from peftjax.binding.operations import Body
from peftjax.binding.uses import Contraction
from peftjax.binding.views import Leaf
from peftjax.core import paths
from peftjax.core.layout import Layout
from peftjax.core.linear import linear_leaves
from peftjax.core.sites import ModuleSite, Sites, WeightSite


def discover(traceable: Callable[..., Any], params: Any, call: Call) -> Sites:
    """The sites that the model offers in the given call.

    Args:
      traceable: the model's function with its modules tagged.
      params: arrays or `ShapeDtypeStruct`s; nothing is computed.
      call: example arguments.
    """
    recorder = _Recorder()

    def evaluate(params: Any, arrays: Any) -> None:
        closed = jax.make_jaxpr(call.function(traceable))(params, arrays)
        leaves = [views.start(path, leaf) for path, leaf in paths.flatten(params).items()]
        context = Context(recorder)
        for result in run(Body(closed.jaxpr, closed.consts), [*leaves, *arrays], context):
            plain(result, 'the output of the model', context)

    jax.eval_shape(evaluate, params, call.arrays)
    leaves = paths.flatten(params)
    weights = {path: recorder.weight_site(path, leaf, leaves) for path, leaf in leaves.items()}
    for path in linear_leaves(weights, recorder.modules, recorder.last_matrix):
        weights[path] = dataclasses.replace(weights[path], linear=True)
    return Sites(weights, recorder.modules)


class _Recorder:
    """A visitor that records uses and calls, and changes nothing."""

    def __init__(self) -> None:
        self.facts: dict[str, list[uses.Facts]] = {}
        self.refusals: dict[str, list[tuple[str, str]]] = {}
        self.scanned: dict[str, tuple[int, ...]] = {}
        self.order: dict[str, list[uses.Facts | str]] = {}
        self.matrices: set[str] = set()
        self.modules: dict[str, ModuleSite] = {}
        self.last = ''
        self.last_matrix = ''

    def use(self, leaf: Leaf, contraction: Contraction, plain: Any) -> Any:
        facts = contraction.facts()
        self.facts.setdefault(leaf.path, []).append(facts)
        self.order.setdefault(leaf.path, []).append(facts)
        self.scanned.setdefault(leaf.path, leaf.picked)
        self.matrices.add(leaf.path)
        self.last = self.last_matrix = leaf.path
        return plain()

    def refuse(self, leaf: Leaf, operation: str, reason: str, spread: bool = False) -> None:
        self.refusals.setdefault(leaf.path, []).append((operation, reason))
        self.order.setdefault(leaf.path, []).append(operation)
        self.scanned.setdefault(leaf.path, leaf.picked)
        if not spread and len(leaf.shape) - len(leaf.picked) > 1:
            self.matrices.add(leaf.path)
            self.last_matrix = leaf.path

    def module(self, called: Called, context: Context) -> jax.Array:
        tag, inputs, around, output = called
        reason = ''
        if tag.core is not None:
            try:
                core = attention.use_of(tag.core, inputs, tag.path)
                inputs = core.query, core.key, core.value
            except ValueError as error:
                reason = str(error)
        scans = tuple(layers for _, layers in context.scans)
        stack = tuple(length for length, layers in context.scans if layers)
        if output.ndim != tag.rank:
            reason = 'it is called under vmap'
        known = self.modules.get(tag.path)
        if known is not None and known.scans != scans:
            reason = 'it is called both inside and outside of a scan'
        elif known is not None and known.shape[-1:] != output.shape[-1:]:
            reason = f'its calls return {known.shape} and {output.shape}'
        self.modules[tag.path] = ModuleSite(
            tag.path,
            tag.kind,
            tuple(value.shape for value in inputs),
            output.shape,
            output.dtype,
            scans,
            stack,
            reason or (known.reason if known else ''),
            tuple(value.shape for value in around),
            self.last,
            tag.core is not None,
        )
        return output

    def opaque(self, tag: tags.Tag, reason: str) -> None:
        self.modules[tag.path] = ModuleSite(tag.path, tag.kind, (), (), None, reason=reason)

    def weight_site(self, path: str, leaf: Any, leaves: Mapping[str, Any]) -> WeightSite:
        layout, reason = self._layout(path, leaf)
        used = path in self.order
        vector = path not in self.matrices if used else len(leaf.shape) < 2
        scanned = self.scanned.get(path, ())
        bias = f'{paths.parent(path)}/bias'.removeprefix('/')
        beside = bias if bias in leaves and bias != path else ''
        return WeightSite(
            path, leaf.shape, leaf.dtype, self._uses(path), layout, reason, scanned, vector, beside
        )

    def _layout(self, path: str, leaf: Any) -> tuple[Layout | None, str]:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return None, f'it holds {leaf.dtype}, which has no gradient'
        if path in self.refusals:
            operation, reason = self.refusals[path][0]
            return None, reason if operation in reason else f'{reason} (at {operation})'
        if path not in self.facts:
            return None, 'it is not used in a call with the example inputs'
        if not math.prod(leaf.shape):
            return None, 'it is empty'
        first = self._leading(path)
        for other in self.facts[path]:
            same = (other.rows, other.columns) == (first.rows, first.columns)
            if other.stack != first.stack or not (same or _is_turned(other, first)):
                return None, (
                    f'its uses contract different axes: {first.rows} and {other.rows} '
                    f'of {leaf.shape}'
                )
            if not same and other.kind != 'dot':
                return None, f'it is used as is and, in a {other.kind}, transposed'
        return Layout(
            leaf.shape, first.stack, first.rows, first.columns, lookup=first.kind == 'lookup'
        ), ''

    def _leading(self, path: str) -> uses.Facts:
        """The use that gives the leaf its orientation: a lookup if there is one, else the first."""
        lookups = [facts for facts in self.facts[path] if facts.kind == 'lookup']
        return (lookups or self.facts[path])[0]

    def _uses(self, path: str) -> tuple[str, ...]:
        return tuple(
            use
            if isinstance(use, str)
            else use.kind + (' transposed' if _is_turned(use, self._leading(path)) else '')
            for use in self.order.get(path, ())
        )


def _is_turned(facts: uses.Facts, first: uses.Facts) -> bool:
    return (facts.rows, facts.columns) == (first.columns, first.rows) != (first.rows, first.columns)
