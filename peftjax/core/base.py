"""The types a PEFT method is made of."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec, Protocol

import jax
import jax.numpy as jnp

from peftjax.core.layout import Layout
from peftjax.core.sites import Sites

_P = ParamSpec('_P')

Adapter = Any
"""A pytree of arrays: `{site path: leaves}` of one method, a tuple or dict of them of a chain."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model as a value: a pure function, its parameters, and the sites it offers.

    A pytree whose leaves are `params`, so that it passes through `jit`, `vmap` and `eval_shape`.

    Attributes:
      apply: `apply(params, *args, **kwargs)`, pure.
      params: nested dict of arrays, or of `jax.ShapeDtypeStruct` for planning.
      sites: where methods can act.
      traceable: `apply` with every module output tagged for the binding; the same numbers.
      config, tokenizer: what the checkpoint came with, where known.
      takes: names of the arguments that the model's own signature spells out.
    """

    apply: Callable[..., Any]
    params: Any
    sites: Sites
    traceable: Callable[..., Any]
    config: Any = None
    tokenizer: Any = None
    takes: tuple[str, ...] = ()

    def replace(self, **changes: Any) -> 'Model':
        """A copy with some fields changed, for example other `params`."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class _SameObjects:
    """The static part of a `Model`: equal when its fields are the same objects."""

    fields: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameObjects) and all(
            mine is theirs for mine, theirs in zip(self.fields, other.fields, strict=True)
        )

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.fields)))


def _flatten_model(model: Model) -> tuple[Any, _SameObjects]:
    static = (
        *(model.apply, model.sites, model.traceable, model.config, model.tokenizer),
        model.takes,
    )
    return ((jax.tree_util.GetAttrKey('params'), model.params),), _SameObjects(static)


def _unflatten_model(static: _SameObjects, children: Any) -> Model:
    apply, sites, traceable, config, tokenizer, takes = static.fields
    return Model(apply, children[0], sites, traceable, config, tokenizer, takes)


jax.tree_util.register_pytree_with_keys(Model, _flatten_model, _unflatten_model)


@jax.tree_util.register_pytree_with_keys_class
class WeightAdapter(Mapping[str, Any]):
    """What a weight method keeps for one leaf: arrays by name, and the leaf's layout (static).

    Reads like a dict: `adapter['dense/kernel']['a']`. Each array carries the axes of
    `layout.stack` in front.
    """

    def __init__(self, layout: Layout, arrays: Mapping[str, Any]):
        self.layout = layout
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f'WeightAdapter({self._arrays!r})'

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        names = tuple(sorted(self._arrays))
        children = [(jax.tree_util.DictKey(name), self._arrays[name]) for name in names]
        return children, (self.layout, names)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> 'WeightAdapter':
        layout, names = static
        return cls(layout, dict(zip(names, children, strict=True)))


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of one weight, as a rule sees it: always a linear map of one matrix.

    Letters: `T` tokens (all other axes flattened), `in` and `out` as in the leaf's `Layout`.

    Attributes:
      x: operand: `[T, in]`; `[T, out]` if `transposed`; `[T]` integers for a lookup; images in
        the model's own layout for a convolution.
      tokens: sizes of the axes that `T` flattens, for example `(batch, length)`; of an image,
        its batch.
      kind: `'dot'`, `'lookup'` or `'conv'`.
      transposed: the map runs from `out` to `in` (a tied output head).
      key: a PRNG key for the adapter's own noise, or None when it is off.
      dtype: dtype of the computation.
      base: `base(x)`: what the model computes here without this rule.
      weight: `weight()`: the matrix `[in, out]` in force without this rule.
      product: `product(x, m)`: the same use of another matrix, `[in, k]` (`[k, in]` transposed).
      lowrank: `lowrank(x, a, b)`: the same use of `a @ b` without forming it; `lowrank(x, a, b,
        middle)` of `a @ diag(middle) @ b`, whose gradient by `middle: [r]` costs no product.
    """

    x: jax.Array
    tokens: tuple[int, ...]
    kind: str
    transposed: bool
    key: jax.Array | None
    dtype: Any
    base: Callable[[jax.Array], jax.Array]
    weight: Callable[[], jax.Array]
    product: Callable[[jax.Array, jax.Array], jax.Array]
    lowrank: Callable[..., jax.Array]

    def replace(self, **changes: Any) -> 'Use':
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def dropped(self, rate: float) -> jax.Array:
        """`x` after inverted dropout at `rate`; unchanged without a key and for a lookup."""
        if self.key is None or rate == 0.0 or self.kind == 'lookup':
            return self.x
        keep = jax.random.bernoulli(self.key, 1.0 - rate, self.x.shape)
        return jnp.where(keep, self.x / (1.0 - rate), jnp.zeros_like(self.x))


@dataclasses.dataclass(frozen=True)
class ModuleUse:
    """One call of one module, as a rule sees it.

    Attributes:
      inputs: the array arguments of the call, keyword arguments behind positional ones by name.
      output: what the module returned (its first array).
      key: a PRNG key for the adapter's own noise, or None when it is off.
      keywords: the keyword arguments of the whole model's call, such as `attention_mask`.
      around: the array arguments of the module that calls this one, as far as it has a name.
    """

    inputs: tuple[jax.Array, ...]
    output: jax.Array
    key: jax.Array | None
    keywords: Mapping[str, Any]
    around: tuple[jax.Array, ...] = ()

    @property
    def follows(self) -> bool:
        """See `ModelCall.follows`."""
        return self.keywords.get('cache') is not None


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """One call of the whole model, as a rule sees it.

    Attributes:
      args, keywords: the arguments: arrays, and whatever the model takes besides.
      key: a PRNG key for the adapter's own noise, or None when it is off.
      run: `run(*args, **keywords)`: the model's result with all other rules in force.
      takes: names of the arguments that the model knows.
    """

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    key: jax.Array | None
    run: Callable[..., Any]
    takes: tuple[str, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether the tokens go on behind those in a `cache`, virtual ones among them."""
        return self.keywords.get('cache') is not None


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """What a weight method does at every use of one leaf.

    Attributes:
      leaves: its arrays, stack axes in front.
      layout: of the leaf, or None if the rule only replaces it.
      forward: `forward(leaves, use)` gives the result of the use.
      merged: `merged(leaves, matrix)` gives the matrix in force; None where no matrix stands for
        what the rule does, so that no weight method can follow it in a chain.
      base: a function of the model's own leaf that gives the one to stand in for it, or None.
      replaces: whether `base` pays no heed to the leaf it is given, as a trained copy does.
      prepare: `prepare(leaves, matrix)` gives the leaves that `forward` sees, once for each call
        of the model and outside of its loops: for what depends on the weights alone. `merged`
        must take them as well. None for `leaves` as they are.
    """

    leaves: Any
    layout: Layout | None
    forward: Callable[[Any, Use], jax.Array]
    merged: Callable[[Any, jax.Array], jax.Array] | None
    base: Callable[[jax.Array], jax.Array] | None = None
    replaces: bool = False
    prepare: Callable[[Any, jax.Array], Any] | None = None


@dataclasses.dataclass(frozen=True)
class ModuleRule:
    """What an activation method does at every call of one module.

    Attributes:
      leaves: its arrays, stack axes in front.
      forward: `forward(leaves, use)` gives the output in force.
      prepare: `prepare(leaves, params)` gives the leaves that `forward` sees, from the model's own
        `{leaf path: array}`, once for each call of the model and outside of its loops; or None.
    """

    leaves: Any
    forward: Callable[[Any, ModuleUse], jax.Array]
    prepare: Callable[[Any, Mapping[str, Any]], Any] | None = None


@dataclasses.dataclass(frozen=True)
class CallRule:
    """What an input method does at every call of the whole model; its path is `ROOT`.

    Attributes:
      leaves: its arrays.
      forward: `forward(leaves, call)` gives the result in force.
      virtual_tokens: how many positions it adds to the sequence; one method of a chain may.
    """

    leaves: Any
    forward: Callable[[Any, ModelCall], Any]
    virtual_tokens: int = 0


ROOT = ''
"""The path of the whole model among the paths of rules."""

Rule = WeightRule | ModuleRule | CallRule


class InitFn(Protocol):
    def __call__(self, key: jax.Array, model: Model, /) -> Adapter: ...


class MergeFn(Protocol):
    def __call__(self, params: Any, adapter: Adapter, /) -> Any: ...


class RulesFn(Protocol):
    def __call__(self, adapter: Adapter, /) -> Mapping[str, Rule]: ...


def _same_base(params: Any, adapter: Adapter, /) -> Any:
    del adapter
    return params


def is_abstract(adapter: Adapter) -> bool:
    """Whether an adapter is of shapes alone (`jax.ShapeDtypeStruct`), to be looked at only."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(adapter))


@dataclasses.dataclass(frozen=True, eq=False)
class About:
    """What made a transform: the name of the function, and its arguments by name.

    floats: those of the arguments that are numbers and no counts, by their annotation.
    padded_by: the argument that `padded_by` names, if any.
    """

    name: str
    arguments: Mapping[str, Any]
    floats: frozenset[str] = frozenset()
    padded_by: str | None = None

    def __repr__(self) -> str:
        arguments = ', '.join(f'{name}={value!r}' for name, value in self.arguments.items())
        return f'{self.name}({arguments})'


class PeftTransform(NamedTuple):
    """A PEFT method: a value made of pure functions.

    Attributes:
      init: `init(key, model) -> adapter`, the only tree that trains. Works on abstract
        parameters under `jax.eval_shape`; `jax.vmap` over keys gives K adapters on one base.
      merge: `merge(params, adapter) -> params` of the same structure, shapes and dtypes, with
        which the plain model computes what the adapted one does. Raises `MergeError` by name
        for methods that live on activations.
      rules: `rules(adapter) -> {site path: rule}`, the training route: how the adapter changes
        what is computed at each site, without forming a merged weight. Of an adapter of shapes
        alone too, for a look at the sites.
      base: `base(params, adapter) -> params`: what stays frozen beside a fresh adapter. The
        parameters themselves, but for methods that start from a part of them (PiSSA), which
        would otherwise count it twice.
      about: how it was made, for files that tell others; None of a method of one's own.
    """

    init: InitFn
    merge: MergeFn
    rules: RulesFn
    base: MergeFn = _same_base
    about: About | None = None

    def __repr__(self) -> str:
        return (
            "PeftTransform of a function of one's own" if self.about is None else repr(self.about)
        )


def described(make: Callable[_P, PeftTransform]) -> Callable[_P, PeftTransform]:
    """`make`, whose transforms say in `about` how they were made."""
    signature = inspect.signature(make)
    floats = frozenset(
        name for name, each in signature.parameters.items() if 'float' in str(each.annotation)
    )

    @functools.wraps(make)
    def made(*args: _P.args, **kwargs: _P.kwargs) -> PeftTransform:
        transform = make(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        about = About(make.__name__, dict(bound.arguments), floats)
        return transform._replace(about=about)

    return made


def padded_by(
    argument: str,
) -> Callable[[Callable[_P, PeftTransform]], Callable[_P, PeftTransform]]:
    """Says of a `described` method that zeros beyond its own `argument` change nothing.

    An adapter of a lesser rank (or size), padded with zeros to the shapes of a greater one,
    computes the same with the same scale, and a step leaves the zeros as they are. So runs of
    several ranks may share one program, see `peftjax.training.vectorize`.

    >>> peftjax.lora(rank=2, targets=r'hidden').about.padded_by
    'rank'
    """

    def wrap(make: Callable[_P, PeftTransform]) -> Callable[_P, PeftTransform]:
        @functools.wraps(make)
        def made(*args: _P.args, **kwargs: _P.kwargs) -> PeftTransform:
            transform = make(*args, **kwargs)
            assert transform.about is not None, 'padded_by stands above described'
            return transform._replace(
                about=dataclasses.replace(transform.about, padded_by=argument)
            )

        return made

    return wrap


class MergeError(ValueError):
    """A method that lives on activations was asked to merge into weights."""


class AdapterError(ValueError):
    """An adapter that does not belong to the model or the transform it is used with."""


def check_entries(adapter: Adapter, fits: Callable[[Any], bool], method: str, entry: str) -> None:
    """Raises `AdapterError` unless `adapter` is `{site path: entry}` as `method` makes it."""
    if not isinstance(adapter, Mapping):
        found = f'a {type(adapter).__name__}'
    else:
        wrong = [path for path, value in adapter.items() if not fits(value)]
        if not wrong:
            return
        first = adapter[wrong[0]]
        kind = 'n array' if isinstance(first, jax.Array) else f' {type(first).__name__}'
        found = f'a{kind} at {wrong[0]!r}'
    raise AdapterError(
        f'{method} expects an adapter {{site path: {entry}}} as its own init makes it, found '
        f"{found}. Was it made by another transform, or is it a part of a chain's adapter?"
    )
