"""Runs a model with an adapter, without forming merged weights."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from peftjax.binding import calls, described, views
from peftjax.binding.binder import Binder
from peftjax.binding.context import Context, plain
from peftjax.binding.interpret import run
from peftjax.binding.operations import Body
from peftjax.binding.precompute import precompute
from peftjax.binding.views import Leaf
from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.frozen import Frozen, check_frozen
from peftjax.core.model import Model
from peftjax.core.quantized import is_quantized, like_dense
from peftjax.core.rules import ROOT, CallRule, MatrixRule, ModuleRule, Rule
from peftjax.core.tokens import Tokens
from peftjax.core.transform import PeftTransform
from peftjax.core.use import ModelCall


def adapt(model: Model, transform: PeftTransform) -> Callable[..., Any]:
    """`predict(adapter, frozen, *args, adapter_key=None, **kwargs)`: the adapted model.

    If the method can merge, the result equals `model.apply(transform.merge(adapter, frozen), *args,
    **kwargs)`, but it is computed from the factors. Differentiate it with respect to its first
    argument: no gradient of a frozen weight is formed. It is compiled once for each shape of the
    arguments; every number in `adapter` and `frozen` is an argument of the program.

    Args:
      model: the model; only its functions and sites are used, not its `params`.
      transform: the method, or a chain of methods.

    Returns:
      A pure function. Arrays and NumPy values among its arguments are traced, anything else
      (`deterministic=False`, `mutable=('batch_stats',)`) is static. `adapter_key` turns on the
      adapter's own dropout.

    Raises:
      TypeError: swapped arguments; at a call, if `frozen` is not the second result of `init`.
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

    model = model.replace(params=None)  # So that nothing here keeps the values of a base alive.

    @functools.partial(jax.jit, static_argnums=4)
    def compiled(
        adapter: Adapter, frozen: Frozen, key: Any, arrays: Any, structure: calls.Structure
    ) -> Any:
        rules = transform.rules(adapter, frozen.own)
        return evaluate(model, rules, frozen.params, key, calls.Call(arrays, structure))

    def predict(
        adapter: Adapter,
        frozen: Frozen | None = None,  # Its absence is told by check_frozen.
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


def evaluate_precomputed(
    model: Model, rules: Mapping[str, Rule], params: Any, key: Any, call: calls.Call
) -> Any:
    """The model's outputs with the rules and parameters that `precompute` returned."""

    args, keywords = call.arguments()
    rule = rules.get(ROOT)
    if not isinstance(rule, CallRule):
        return _evaluate_sites(model, rules, params, key, call)
    if model.roles is None or keywords.get('method') is not None:
        raise ValueError(
            'this method acts on the call of a model, and needs the roles of its arguments: write '
            "peftjax.wrap(..., roles=peftjax.Roles(token_ids='...')), and call it without method="
        )

    def run(arguments: Mapping[str, Any]) -> Any:
        changed = calls.split(*described.by_place(model.signature, arguments))
        return _evaluate_sites(model, rules, params, key, changed)

    def shapes(arguments: Mapping[str, Any]) -> Any:
        given = calls.split(*described.by_place(model.signature, arguments))
        return jax.eval_shape(given.function(model.apply), like_dense(params), given.arrays)

    named = described.by_name(model.signature, args, keywords)
    return rule.apply(rule.leaves, ModelCall(named, model.roles, _key(key, ROOT), run, shapes))


def _evaluate_sites(
    model: Model, rules: Mapping[str, Rule], params: Any, key: Any, call: calls.Call
) -> Any:
    matrix_rules = {path: rule for path, rule in rules.items() if isinstance(rule, MatrixRule)}
    module_rules = {path: rule for path, rule in rules.items() if isinstance(rule, ModuleRule)}
    context = Context(
        Binder(matrix_rules, module_rules, described.tokens_of(model, *call.arguments())),
        modules={path: (rule.leaves, _key(key, path)) for path, rule in module_rules.items()},
        layered={path: model.sites.modules[path].scans for path in module_rules},
    )
    values = [
        _enter(path, leaf, matrix_rules.get(path), key)
        for path, leaf in paths.flatten(params).items()
    ]
    function = model.traceable if module_rules else model.apply
    return _followed(function, params, values, call, context)


def _followed(
    apply: Callable[..., Any], params: Any, values: list[Any], call: calls.Call, context: Context
) -> Any:
    """The result of `apply`, evaluated with `values` as the leaves of `params`."""
    function = call.function(apply)
    closed, shape = jax.make_jaxpr(function, return_shape=True)(like_dense(params), call.arrays)
    results = run(Body(closed.jaxpr, closed.consts), [*values, *call.arrays], context)
    arrays = [plain(result, 'the output of the model', context) for result in results]
    return jax.tree.unflatten(jax.tree.structure(shape), arrays)


def reads_quantized(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply(params, ...)` that also accepts params with quantised leaves."""

    def reading(params: Any, *args: Any, **kwargs: Any) -> Any:
        leaves = paths.flatten(params)
        if not any(map(is_quantized, leaves.values())):
            return apply(params, *args, **kwargs)
        call = calls.split(args, kwargs)
        values = [_enter(path, leaf, None, None) for path, leaf in leaves.items()]
        return _followed(apply, params, values, call, Context(Binder({}, {}, lambda *_: Tokens())))

    return reading


def _key(key: Any, path: str) -> Any:
    return None if key is None else paths.fold_in(key, path)


def _enter(path: str, leaf: jax.Array, rule: MatrixRule | None, key: Any) -> Any:
    """Wraps a leaf in a view if a rule applies to it or it is quantised; else returns it."""
    if rule is None:
        return views.start(path, leaf) if is_quantized(leaf) else leaf
    view = views.start(path, leaf)
    followed = Leaf(path, leaf.shape, stack=rule.layout.stack, state=(rule.leaves, _key(key, path)))
    return views.View(followed, view.value, view.dims)
