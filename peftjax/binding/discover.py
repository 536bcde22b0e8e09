"""Finds the sites of a model by evaluating its program once, abstractly."""

import math
from collections.abc import Callable
from typing import Any

import jax

from peftjax.binding import tags, uses, views
from peftjax.binding.calls import Call
from peftjax.binding.interpret import Contraction, Frame, run
from peftjax.binding.views import Leaf
from peftjax.core import paths
from peftjax.core.layout import Layout
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
        run(closed.jaxpr, closed.consts, [*leaves, *arrays], Frame(recorder))

    jax.eval_shape(evaluate, params, call.arrays)
    weights = {
        path: recorder.weight_site(path, leaf) for path, leaf in paths.flatten(params).items()
    }
    return Sites(weights, recorder.modules)


class _Recorder:
    """A visitor that notes what happens and changes nothing."""

    def __init__(self) -> None:
        self.facts: dict[str, list[uses.Facts]] = {}
        self.refusals: dict[str, list[tuple[str, str]]] = {}
        self.scanned: dict[str, tuple[int, ...]] = {}
        self.order: dict[str, list[str]] = {}
        self.matrices: set[str] = set()
        self.modules: dict[str, ModuleSite] = {}

    def use(self, leaf: Leaf, contraction: Contraction, plain: Any) -> Any:
        facts = contraction.facts()
        first = self.facts.setdefault(leaf.path, [facts])[0]
        if first is not facts:
            self.facts[leaf.path].append(facts)
        turned = ' transposed' if _is_turned(facts, first) else ''
        self.order.setdefault(leaf.path, []).append(facts.kind + turned)
        self.scanned.setdefault(leaf.path, leaf.picked)
        self.matrices.add(leaf.path)
        return plain()

    def refuse(self, leaf: Leaf, operation: str, reason: str, spread: bool = False) -> None:
        self.refusals.setdefault(leaf.path, []).append((operation, reason))
        self.order.setdefault(leaf.path, []).append(operation)
        self.scanned.setdefault(leaf.path, leaf.picked)
        if not spread and len(leaf.shape) - len(leaf.picked) > 1:
            self.matrices.add(leaf.path)

    def module(
        self, tag: tags.Tag, inputs: tuple[jax.Array, ...], output: jax.Array, frame: Frame
    ) -> jax.Array:
        scans = tuple(layers for _, layers in frame.scans)
        stack = tuple(length for length, layers in frame.scans if layers)
        reason = ''
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
        )
        return output

    def opaque(self, tag: tags.Tag, operation: str) -> None:
        self.modules[tag.path] = ModuleSite(
            tag.path,
            tag.kind,
            (),
            (),
            None,
            reason=f'it is called inside {operation}, which cannot be entered',
        )

    def weight_site(self, path: str, leaf: Any) -> WeightSite:
        order = tuple(self.order.get(path, ()))
        layout, reason = self._layout(path, leaf.shape)
        used = path in self.order
        vector = path not in self.matrices if used else len(leaf.shape) < 2
        scanned = self.scanned.get(path, ())
        return WeightSite(path, leaf.shape, leaf.dtype, order, layout, reason, scanned, vector)

    def _layout(self, path: str, shape: tuple[int, ...]) -> tuple[Layout | None, str]:
        if path in self.refusals:
            operation, reason = self.refusals[path][0]
            return None, reason if operation in reason else f'{reason} (at {operation})'
        facts = self.facts.get(path)
        if not facts:
            return None, 'it is not used in a call with the example inputs'
        first = facts[0]
        for other in facts[1:]:
            same = (other.rows, other.columns) == (first.rows, first.columns)
            if other.stack != first.stack or not (same or _is_turned(other, first)):
                return None, (
                    f'its uses contract different axes: {first.rows} and {other.rows} of {shape}'
                )
            if _is_turned(other, first) and other.kind != 'dot':
                return None, f'it is used as is and, in a {other.kind}, transposed'
        if not math.prod(shape):
            return None, 'it is empty'
        return Layout(
            shape, first.stack, first.rows, first.columns, lookup=first.kind == 'lookup'
        ), ''


def _is_turned(facts: uses.Facts, first: uses.Facts) -> bool:
    return (facts.rows, facts.columns) == (first.columns, first.rows) != (first.rows, first.columns)
