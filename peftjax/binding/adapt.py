"""Runs a model with an adapter in force, without forming merged weights."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from peftjax.binding import calls, tags, views
from peftjax.binding.frames import Frame, plain
from peftjax.binding.interpret import run
from peftjax.binding.jaxprs import Body
from peftjax.binding.uses import Contraction
from peftjax.binding.views import Leaf, Refused
from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.errors import AdapterError
from peftjax.core.holes import is_hole
from peftjax.core.merge import check_leaf, over_stack, replaced
from peftjax.core.model import Model
from peftjax.core.quantized import dense, is_quantized, like_dense
from peftjax.core.rules import ROOT, CallRule, MatrixRule, ModuleRule, Rule, leaf_rule
from peftjax.core.sites import Sites
from peftjax.core.transform import Frozen, PeftTransform, check_frozen
from peftjax.core.use import ModelCall, ModuleUse


def adapt(model: Model, transform: PeftTransform) -> Callable[..., Any]:
    """`predict(adapter, frozen, *args, adapter_key=None, **kwargs)`: the adapted model.

    Equal to `model.apply(transform.merge(adapter, frozen), *args, **kwargs)` where the method
    can merge, but computed from the factors: differentiate it with respect to its first argument
    and no gradient of a frozen weight is formed. Compiled once for each shape of the arguments;
    every number in `adapter` and `frozen` is an argument of the program.

    Args:
      model: the model; only its functions and sites are used, not its `params`.
      transform: the method, or a chain of methods.

    Returns:
      A pure function. Arrays and NumPy values among its arguments are traced, anything else
      (`deterministic=False`, `mutable=('batch_stats',)`) is static. `adapter_key` turns on the
      adapter's own dropout.

    Raises:
      TypeError: swapped arguments; at a call, if `frozen` is not what `init` gave.
      AdapterError: at a call, if the adapter does not belong to this model or transform, or if
        this call uses an adapted weight in a way that the example inputs of `wrap` did not show.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> predict = peftjax.adapt(mlp, tx)
    >>> predict(adapter, frozen, jax.numpy.ones((5, 4))).shape
    (5, 3)
    """
    if isinstance(model, PeftTransform) and isinstance(transform, Model):
        raise TypeError(
            'the arguments are swapped: write peftjax.adapt(model, tx), the model first'
        )
    if not (isinstance(model, Model) and isinstance(transform, PeftTransform)):
        raise TypeError(
            f'adapt takes a model and a transform, found a {type(model).__name__} and a '
            f'{type(transform).__name__}; write peftjax.adapt(model, tx)'
        )

    @functools.partial(jax.jit, static_argnums=4)
    def compiled(
        adapter: Adapter, frozen: Frozen, key: Any, arrays: Any, structure: calls.Structure
    ) -> Any:
        rules = transform.rules(adapter, frozen.own)
        return evaluate(model, rules, frozen.params, key, calls.Call(arrays, structure))

    def predict(
        adapter: Adapter,
        frozen: Frozen,
        *args: Any,
        adapter_key: jax.Array | None = None,
        **kwargs: Any,
    ) -> Any:
        check_frozen(adapter, frozen)
        call = calls.split(args, kwargs)
        return compiled(adapter, frozen, adapter_key, call.arrays, call.structure)

    return predict


def evaluate(
    model: Model, rules: Mapping[str, Rule], params: Any, key: Any, call: calls.Call
) -> Any:
    """The model's outputs with `rules` in force."""
    return evaluate_precomputed(model, *precompute(model, rules, params), key, call)


def precompute(model: Model, rules: Mapping[str, Rule], params: Any) -> tuple[dict[str, Rule], Any]:
    """`rules` and `params` with all done that depends on weights alone, before the first call.

    Leaves that a rule replaces are replaced, and what rules prepare is prepared: of many calls, as
    in decoding, each then does only what its tokens need.
    """
    leaves = paths.slots(params)
    _check(rules, leaves, model.sites)
    found = dict(rules)
    for path, rule in rules.items():
        before = leaf_rule(rule)
        if before is None:
            continue
        leaves[path] = replaced(before, dense(leaves[path]))
        if isinstance(rule, MatrixRule):
            found[path] = dataclasses.replace(rule, before=None)
        else:
            del found[path]
    if left := [path for path, leaf in leaves.items() if is_hole(leaf)]:
        raise AdapterError(
            f'frozen.params has {leaves[left[0]]!r} at {left[0]!r}, and this adapter does not hold '
            'the leaf; pass the frozen that init gave beside this adapter'
        )
    for path, rule in found.items():
        if isinstance(rule, MatrixRule) and rule.prepare is not None:
            leaves_of_rule = _prepared(rule, leaves[path])
        elif isinstance(rule, ModuleRule) and rule.prepare is not None:
            leaves_of_rule = rule.prepare(rule.leaves, _Dense(leaves))
        else:
            continue
        found[path] = dataclasses.replace(rule, leaves=leaves_of_rule, prepare=None)
    return found, paths.replace(params, leaves)


class _Dense(Mapping[str, Any]):
    """Leaves by path, each dequantised when it is asked for."""

    def __init__(self, leaves: Mapping[str, Any]):
        self._leaves = leaves

    def __getitem__(self, path: str) -> Any:
        return dense(self._leaves[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)


def _prepared(rule: MatrixRule, leaf: Any) -> Any:
    """What a rule sees of its leaves; of a quantised weight one matrix is read at a time."""
    layout, prepare = rule.layout, rule.prepare
    assert prepare is not None
    if not is_quantized(leaf):
        return over_stack(prepare, layout)(rule.leaves, layout.to_matrix(leaf))

    @jax.checkpoint
    def one(part: Any) -> Any:
        leaves, quantized = part
        return prepare(leaves, quantized.matrix.to_matrix(quantized.dequantize()))

    for _ in layout.stack:
        one = functools.partial(jax.lax.map, one)
    return one((rule.leaves, leaf))


def evaluate_precomputed(
    model: Model, rules: Mapping[str, Rule], params: Any, key: Any, call: calls.Call
) -> Any:
    """The model's outputs with what `precompute` gave."""

    def inside(*args: Any, **keywords: Any) -> Any:
        return _evaluate_sites(model, rules, params, key, calls.split(args, keywords))

    args, keywords = call.arguments()
    rule = rules.get(ROOT)
    if not isinstance(rule, CallRule):
        return inside(*args, **keywords)
    whole = ModelCall(args, keywords, _key(key, ROOT), inside, model.takes)
    return rule.apply(rule.leaves, whole)


def _evaluate_sites(
    model: Model, rules: Mapping[str, Rule], params: Any, key: Any, call: calls.Call
) -> Any:
    matrix_rules = {path: rule for path, rule in rules.items() if isinstance(rule, MatrixRule)}
    module_rules = {path: rule for path, rule in rules.items() if isinstance(rule, ModuleRule)}
    frame = Frame(
        _Binder(matrix_rules, module_rules, call.arguments()[1]),
        modules={path: (rule.leaves, _key(key, path)) for path, rule in module_rules.items()},
        layered={path: model.sites.modules[path].scans for path in module_rules},
    )
    values = [
        _enter(path, leaf, matrix_rules.get(path), key)
        for path, leaf in paths.flatten(params).items()
    ]
    function = model.traceable if module_rules else model.apply
    return _followed(function, params, values, call, frame)


def _followed(
    apply: Callable[..., Any], params: Any, values: list[Any], call: calls.Call, frame: Frame
) -> Any:
    """What `apply` returns, evaluated with `values` in the place of the leaves of `params`."""
    function = call.function(apply)
    closed, shape = jax.make_jaxpr(function, return_shape=True)(like_dense(params), call.arrays)
    results = run(Body(closed.jaxpr, closed.consts), [*values, *call.arrays], frame)
    arrays = [plain(result, 'the output of the model', frame) for result in results]
    return jax.tree.unflatten(jax.tree.structure(shape), arrays)


def reads_quantized(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply(params, ...)`, for params with quantised leaves too."""

    def reading(params: Any, *args: Any, **kwargs: Any) -> Any:
        leaves = paths.flatten(params)
        if not any(map(is_quantized, leaves.values())):
            return apply(params, *args, **kwargs)
        call = calls.split(args, kwargs)
        values = [_enter(path, leaf, None, None) for path, leaf in leaves.items()]
        return _followed(apply, params, values, call, Frame(_Binder({}, {}, {})))

    return reading


def _key(key: Any, path: str) -> Any:
    return None if key is None else paths.fold_in(key, path)


def _enter(path: str, leaf: jax.Array, rule: MatrixRule | None, key: Any) -> Any:
    """A leaf as the program receives it: a view if a rule waits for its uses, or it is packed."""
    if rule is None:
        return views.start(path, leaf) if is_quantized(leaf) else leaf
    view = views.start(path, leaf)
    followed = Leaf(path, leaf.shape, stack=rule.layout.stack, state=(rule.leaves, _key(key, path)))
    return views.View(followed, view.value, view.dims)


def _check(rules: Mapping[str, Rule], leaves: dict[str, Any], sites: Sites) -> None:
    for path, rule in rules.items():
        if isinstance(rule, CallRule):
            continue
        if not isinstance(rule, ModuleRule):
            check_leaf(path, rule, leaves)
        elif path not in sites.modules:
            raise AdapterError(
                f'the adapter acts on {path!r}, which this model lacks; near '
                f'names: {paths.near_names(path, sites.modules)}. Was it made for another '
                'model?'
            )
        if isinstance(rule, MatrixRule) and rule.layout != sites.weights[path].layout:
            raise AdapterError(
                f'the adapter was made for a model that uses {path!r} as '
                f'{rule.layout}; this one uses it as '
                f'{sites.weights[path].layout}. Was it made for another model, or one '
                'wrapped with other example inputs?'
            )


class _Binder:
    """A visitor that puts rules in the place of uses."""

    def __init__(
        self,
        weights: dict[str, MatrixRule],
        modules: dict[str, ModuleRule],
        keywords: dict[str, Any],
    ):
        self._weights, self._modules = weights, modules
        self._keywords = keywords
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
                f'the example inputs {layout.rows} with {layout.stack}'
            )
        return contraction.run(
            self._split(leaf.path, leaf.state), rule.apply, transposed=not forward
        )

    def refuse(self, leaf: Leaf, operation: str, reason: str, spread: bool = False) -> None:
        del spread
        if leaf.state is None:  # A quantised leaf without a rule is read there.
            return
        raise AdapterError(
            f'the adapted weight {leaf.path!r} {leaf.shape} cannot be followed '
            f'through {operation} in this call: {reason}. Leave it out of the '
            'targets, or wrap the model with example inputs like this call'
        )

    def module(
        self,
        tag: tags.Tag,
        inputs: tuple[jax.Array, ...],
        around: tuple[jax.Array, ...],
        output: jax.Array,
        frame: Frame,
    ) -> jax.Array:
        rule = self._modules.get(tag.path)
        if rule is None:
            return output
        leaves, key = self._split(tag.path, frame.modules[tag.path])
        result = rule.apply(leaves, ModuleUse(inputs, output, key, self._keywords, around))
        if result.shape != output.shape:
            raise ValueError(
                f'the rule for module {tag.path!r} returned shape {result.shape} for '
                f'an output of {output.shape}'
            )
        return result.astype(output.dtype)

    def opaque(self, tag: tags.Tag, reason: str) -> None:
        if tag.path in self._modules:
            raise AdapterError(f'module {tag.path!r} cannot be adapted in this call: {reason}')
