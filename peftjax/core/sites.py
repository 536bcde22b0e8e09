"""Sites: the places of a model where a method can act, as facts found by tracing it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from peftjax.core import hints, paths, readable
from peftjax.core.layout import Layout


@dataclasses.dataclass(frozen=True)
class WeightSite:
    """A parameter leaf together with all its uses.

    Attributes:
      path: `/`-joined path of the leaf in `params`.
      shape, dtype: of the leaf.
      uses: what the model does with it, in program order: `'dot'`, `'dot transposed'`,
        `'lookup'`, `'conv'`, or the name of an operation that cannot be followed.
      layout: its axes by role, or None where it cannot be adapted.
      reason: why it cannot be adapted; empty where it can.
      scanned: axes removed by scan or indexing before the weight is first used.
      vector: True for biases and scales: leaves of any rank that are only broadcast over
        activations, and leaves that have at most one axis besides those of the stack.
      bias: path of the bias that stands beside a matrix in its module; empty if none does.
      linear: the target `'all-linear'` means it, see `peftjax.core.linear`.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    uses: tuple[str, ...]
    layout: Layout | None
    reason: str = ''
    scanned: tuple[int, ...] = ()
    vector: bool = False
    bias: str = ''
    linear: bool = False

    def is_meant_by(self, targets: paths.Targets) -> bool:
        """Whether `targets` mean this leaf, by its path, by its module's path, or as linear."""
        return any(
            self.is_meant_by(entry.patterns)
            and not (entry.exclude != () and self.is_meant_by(entry.exclude))
            if isinstance(entry, paths.Selection)
            else self.is_hit_by(entry)
            for entry in paths.entries_of(targets)
        )

    def is_hit_by(self, pattern: paths.Pattern) -> bool:
        """Whether one entry of targets means this leaf."""
        if pattern.text == paths.ALL_LINEAR:
            return self.linear
        return pattern.matches(self.path) or pattern.matches(paths.parent(self.path))


@dataclasses.dataclass(frozen=True)
class ModuleSite:
    """The output of a named module: a block, a sublayer, an attention core, an embedding.

    Attributes:
      path: `/`-joined path of the module.
      kind: the name of its class.
      inputs: shapes of its array arguments, for the example inputs.
      shape, dtype: of its (first) output, for the example inputs.
      scans: for each `lax.scan` around it, outermost first: True where the scan runs over
        layers (it slices parameters), False where it runs over time.
      stack: lengths of the scans over layers: the leading axes of an adapter placed here.
      reason: why nothing can be placed here; empty where it can.
      around: shapes of the array arguments of the module that calls it.
      after: path of the weight matrix that was used last before this output; empty if none was.
      attention: whether it is an attention core, whose first inputs are query, key and value.
    """

    path: str
    kind: str
    inputs: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dtype: Any
    scans: tuple[bool, ...] = ()
    stack: tuple[int, ...] = ()
    reason: str = ''
    around: tuple[tuple[int, ...], ...] = ()
    after: str = ''
    attention: bool = False

    @property
    def features(self) -> int:
        """Size of the last axis of the output."""
        return self.shape[-1]


_NO_MODULES = 'A function has no modules for it to act on: give wrap a module of Flax. '


@dataclasses.dataclass(frozen=True)
class Sites:
    """All sites of a model. `print(model.sites)` shows what can be targeted, and what cannot."""

    weights: Mapping[str, WeightSite]
    modules: Mapping[str, ModuleSite]

    def match_weights(self, targets: paths.Targets, materialize: bool = False) -> list[WeightSite]:
        """Sites that `targets` name, in the model's order.

        A pattern matches a leaf by its own path or by its module's, so that `r'.*/query'` and
        `r'.*/query/kernel'` mean the same, as `['query']` does; see `peftjax.targets`. Vectors
        (biases, scales) beside a matched matrix stay frozen; every matched matrix must be
        adaptable.

        Raises:
          TargetError: a pattern matches no matrix, or one that cannot be adapted.
        """
        chosen = paths.choose(
            targets,
            self.weights,
            lambda pattern, path: not self.weights[path].vector and self._hit(pattern, path),
            self._no_matrix,
            self._hit,
        )
        return [_usable(self.weights[path], text, materialize) for path, text in chosen.items()]

    def match_modules(self, targets: paths.Targets) -> list[ModuleSite]:
        """Module sites that `targets` name by their path.

        Raises:
          TargetError: a pattern matches nothing, or a module that cannot be adapted.
        """

        def nothing(pattern: paths.Pattern) -> paths.TargetError:
            near = paths.nearby(pattern.text, self.modules)
            stacks = {path: site.stack for path, site in self.modules.items()}
            return paths.TargetError(
                f'target {pattern.text!r} matches no module of this model{near}. '
                f'{"" if self.modules else _NO_MODULES}'
                f'{hints.as_last_part(pattern, self.modules)}'
                f'{hints.of_a_stack(pattern, stacks)}print(model.sites) lists them all'
            )

        chosen = paths.choose(targets, self.modules, paths.Pattern.matches, nothing)
        for path, text in chosen.items():
            site = self.modules[path]
            if site.reason:
                raise paths.TargetError(
                    f'target {text!r} matches module {path!r} {site.shape}, which cannot be '
                    f'adapted: {site.reason}'
                )
        return [self.modules[path] for path in chosen]

    def match_leaves(self, targets: paths.Targets) -> list[str]:
        """Paths of the leaves that `targets` name by their own path.

        Raises:
          TargetError: a pattern matches nothing.
        """

        def nothing(pattern: paths.Pattern) -> paths.TargetError:
            near = paths.nearby(pattern.text, self.weights)
            return paths.TargetError(
                f'target {pattern.text!r} matches no parameter leaf{near}. '
                f'{hints.as_last_part(pattern, self.weights)}'
                f'{hints.of_a_stack(pattern, self._stacks())}A leaf is named in full, for example '
                "r'.*/bias'"
            )

        def hits(pattern: paths.Pattern, path: str) -> bool:
            linear = pattern.text == paths.ALL_LINEAR and self.weights[path].linear
            return linear or pattern.matches(path)

        return list(paths.choose(targets, self.weights, hits, nothing))

    def _hit(self, pattern: paths.Pattern, path: str) -> bool:
        return self.weights[path].is_hit_by(pattern)

    def _stacks(self) -> dict[str, tuple[int, ...]]:
        """The lengths of the stacks of layers that the leaves are in, by path."""
        return {
            path: tuple(site.shape[axis] for axis in site.scanned)
            for path, site in self.weights.items()
        }

    def _no_matrix(self, pattern: paths.Pattern) -> paths.TargetError:
        adaptable = [path for path, site in self.weights.items() if site.layout is not None]
        vectors = [
            f'{site.path} {site.shape} ({site.reason})'
            for site in self.weights.values()
            if site.is_hit_by(pattern)
        ]
        if vectors:
            more = f' and {len(vectors) - 3} more' if len(vectors) > 3 else ''
            return paths.TargetError(
                f'target {pattern.text!r} matches no weight matrix, only {vectors[:3]}{more}, '
                f'which {hints.selecting(pattern, self.weights)} trains whole'
            )
        modules = dict.fromkeys(paths.parent(path) for path in adaptable)
        names = [*modules, *adaptable]
        return paths.TargetError(
            f'target {pattern.text!r} matches no weight matrix'
            f'{paths.nearby(pattern.text, names)}. {hints.as_last_part(pattern, names)}'
            f'{hints.of_a_stack(pattern, self._stacks())}'
            'Patterns match a whole path; print(model.sites) lists them all'
        )

    def __str__(self) -> str:
        """A table of the weights and one of the modules; layers that are alike share a line."""
        weights = readable.fold(
            (
                site.path,
                str(site.shape),
                str(site.dtype),
                _signature(site),
                _with_reason(', '.join(dict.fromkeys(site.uses)), site.reason),
            )
            for site in self.weights.values()
        )
        modules = readable.fold(
            (
                site.path,
                str(site.shape),
                str(site.dtype),
                'no' if site.reason else str(site.stack),
                _with_reason(site.kind, site.reason),
            )
            for site in self.modules.values()
        )
        heads = (
            ('weight', 'shape', 'dtype', 'stack, in -> out', 'uses'),
            ('module', 'output', 'dtype', 'stack', 'class'),
        )
        return '\n\n'.join(
            readable.table(
                [
                    head,
                    *((path, readable.times(n, shape), *rest) for n, (path, shape, *rest) in rows),
                ]
            )
            for head, rows in zip(heads, (weights, modules), strict=True)
        )

    __repr__ = __str__


def _signature(site: WeightSite) -> str:
    if site.layout is None:
        return 'no'
    return f'{site.layout.stack_shape}, {site.layout.inputs} -> {site.layout.outputs}'


def _with_reason(text: str, reason: str) -> str:
    return f'{text}: {reason}' if reason and text not in reason else reason or text


def _usable(site: WeightSite, pattern: str, materialize: bool) -> WeightSite:
    if site.layout is not None:
        return site
    if not materialize:
        raise paths.TargetError(
            f'target {pattern!r} matches {site.path!r} {site.shape} {site.dtype}, which cannot '
            f'be adapted: {site.reason}. Leave it out of the pattern, or write '
            'materialize=True to compute its merged weight in every step'
        )
    if not jnp.issubdtype(site.dtype, jnp.inexact):
        raise paths.TargetError(
            f'target {pattern!r} matches {site.path!r} {site.shape} {site.dtype}, which has no '
            'gradient, so that no weight method can act on it; leave it out of the pattern'
        )
    if not math.prod(site.shape):
        raise paths.TargetError(
            f'target {pattern!r} matches {site.path!r} {site.shape}, which is empty; leave it out '
            'of the pattern'
        )
    axes = [axis for axis in range(len(site.shape)) if axis not in site.scanned]
    # Flax convention where the program does not tell: the last axis is the output.
    rows, columns = tuple(axes[:-1]), tuple(axes[-1:])
    layout = Layout(site.shape, tuple(sorted(site.scanned)), rows, columns, opaque=True)
    return dataclasses.replace(site, layout=layout)


def check_real(path: str, leaf: Any, user: str) -> None:
    """Raises `TargetError` for a complex leaf, given itself or as its site.

    user: the name of what computes with real numbers alone.
    """
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise paths.TargetError(
            f'{user} computes with real numbers, but {path!r} is {leaf.dtype} {list(leaf.shape)}; '
            'leave it out. lora, select and full take complex weights'
        )
