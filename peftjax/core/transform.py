"""A PEFT method as a value: what trains, what does not, and what it does to the model."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol

import jax
import jax.numpy as jnp

from peftjax.core import paths, readable
from peftjax.core.arguments import check_names, check_numbers
from peftjax.core.entries import Adapter
from peftjax.core.frozen import Frozen, check_freeze, check_frozen, check_init
from peftjax.core.holes import Hole
from peftjax.core.merge import merged
from peftjax.core.model import Model
from peftjax.core.rules import Rule, leaf_rule

_P = ParamSpec('_P')


class StartFn(Protocol):
    def __call__(self, key: jax.Array, model: Model, /) -> Adapter: ...


class OwnFn(Protocol):
    def __call__(self, model: Model, /) -> Any: ...


class RulesFn(Protocol):
    def __call__(self, adapter: Adapter, own: Any, /) -> Mapping[str, Rule]: ...


class RestFn(Protocol):
    def __call__(self, params: Any, adapter: Adapter, own: Any, /) -> Any: ...


def _nothing(model: Model, /) -> Any:
    del model
    return ()


@dataclasses.dataclass(frozen=True, eq=False)
class About:
    """How a transform was made: the name of the function, and its arguments by name.

    floats: names of the real-valued (non-integer) arguments, as their annotations say.
    padded_by: the argument that `padded_by` names, if any.
    masked_by: the argument that `masked_by` names, if any.
    """

    name: str
    arguments: Mapping[str, Any]
    floats: frozenset[str] = frozenset()
    padded_by: str | None = None
    masked_by: str | None = None

    def __repr__(self) -> str:
        arguments = (
            f'{name}={readable.told_argument(value)}' for name, value in self.arguments.items()
        )
        return f'{self.name}({", ".join(arguments)})'


@dataclasses.dataclass(frozen=True, eq=False)
class PeftTransform:
    """A PEFT method: a value made of pure functions.

    It splits the parameters of a model into what trains and what does not: see `init`. The fields
    are what a method is made of; `init`, `merge` and `adapt` are how it is used.

    Attributes:
      start: `start(key, model) -> adapter`, the tree that trains.
      rules: `rules(adapter, own) -> {site path: rule}`: how the adapter changes what is computed
        at each site, without forming a merged weight. It also takes trees of shapes alone.
      own: `own(model)`: the method's own numbers that do not train, a pytree. `()` if there are
        none.
      rest: `rest(params, adapter, own) -> params`: the frozen parameters to use with a new adapter.
        Methods that move a part of each weight into the adapter (PiSSA, OLoRA) subtract that part,
        which is the same for every key. None where leaves move as a whole or stay.
      about: how it was made, which files record; None for a transform from outside this library.
    """

    start: StartFn
    rules: RulesFn
    own: OwnFn = _nothing
    rest: RestFn | None = None
    about: About | None = None

    def replace(self, **changes: Any) -> 'PeftTransform':
        """A copy with some fields changed; `about` no longer describes it unless it is given."""
        return dataclasses.replace(self, **{'about': None, **changes})

    def init(self, key: jax.Array, model: Model) -> tuple[Adapter, Frozen]:
        """Splits a model into `(adapter, frozen)`: what trains, and everything that does not.

        Pure. Abstract parameters give abstract results under `jax.eval_shape`. `jax.vmap` over
        keys gives K adapters: `jax.vmap(lambda key: tx.init(key, model)[0])(keys)`.

        Args:
          key: for the initial values.
          model: the model to adapt.

        Returns:
          The adapter, a pytree to differentiate, and `Frozen`, a pytree to pass along.

        Raises:
          TypeError: `key` or `model` is something else.
          TargetError: a target matches nothing, or something that the method cannot act on.
          ValueError: a setting that does not fit the model, with the path.

        >>> mlp = peftjax.testing.tiny_mlp()
        >>> adapter, frozen = peftjax.select(r'out/bias').init(jax.random.key(0), mlp)
        >>> adapter['out/bias'].shape, frozen.params['out']['bias']
        ((3,), Hole((3,) float32))
        """
        check_init(key, model)
        adapter, own = self.start(key, model), self.own(model)
        return adapter, Frozen(self.remaining(model.params, adapter, own), own)

    def freeze(self, model: Model, adapter: Adapter) -> Frozen:
        """The frozen part for an adapter that you have, trained or read from a file.

        Args:
          model: the model that `init` was given.
          adapter: of this transform.

        Returns:
          The same as `init` gave beside the adapter. PiSSA and OLoRA decompose the weights again.

        Raises:
          TypeError: `model` or `adapter` is something else.
          AdapterError: the adapter is of another transform.

        >>> mlp = peftjax.testing.tiny_mlp()
        >>> tx = peftjax.select(r'out/bias')
        >>> adapter, _ = tx.init(jax.random.key(0), mlp)
        >>> tx.freeze(mlp, adapter).params['out']['bias']
        Hole((3,) float32)
        """
        check_freeze(model, adapter)
        own = self.own(model)
        if self.rest is None:
            return Frozen(self.remaining(model.params, adapter, own), own)
        self.rules(adapter, own)  # An adapter of another transform is refused.
        # A trained adapter no longer shows which part of the weights it started from.
        fresh = self.start(jax.random.key(0), model)
        return Frozen(self.remaining(model.params, fresh, own), own)

    def remaining(self, params: Any, adapter: Adapter, own: Any) -> Any:
        """The frozen parameters for a new `adapter`: by `rest`, or with holes for moved leaves."""
        if self.rest is not None:
            return self.rest(params, adapter, own)
        leaves = paths.slots(params)
        moved = (
            path
            for path, rule in self.rules(adapter, own).items()
            if (before := leaf_rule(rule)) is not None and before.keeps == 'nothing'
        )
        gone = {path: Hole.of(leaves[path]) for path in moved if path in leaves}
        return paths.replace(params, gone) if gone else params

    def merge(self, adapter: Adapter, frozen: Frozen, dtype: Any = None) -> Any:
        """Parameters with which the plain model computes the same as the adapted one.

        Args:
          adapter, frozen: from `init`; the adapter may have been trained since.
          dtype: of all float leaves of the result, and of the sums that compute them; the model's
            own by default. A sum in bfloat16 loses small changes: see `peftjax.merge_loss`.

        Returns:
          A tree like the model's parameters, of the same shapes.

        Raises:
          MergeError: the method has no merged weight, or a leaf is quantised. The message names it.
          AdapterError: the adapter is of another transform or for another model.

        >>> mlp = peftjax.testing.tiny_mlp()
        >>> tx = peftjax.lora(rank=2, targets=r'hidden')
        >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
        >>> tx.merge(adapter, frozen)['hidden']['kernel'].shape
        (4, 8)
        """
        check_frozen(adapter, frozen)
        return merged(frozen.params, self.rules(adapter, frozen.own), dtype)

    def __repr__(self) -> str:
        return 'PeftTransform of functions' if self.about is None else repr(self.about)


def described(make: Callable[_P, PeftTransform]) -> Callable[_P, PeftTransform]:
    """Decorates `make`: its transforms record in `about` how they were made."""
    signature = inspect.signature(make)
    floats = frozenset(
        name for name, each in signature.parameters.items() if 'float' in str(each.annotation)
    )

    @functools.wraps(make)
    def made(*args: _P.args, **kwargs: _P.kwargs) -> PeftTransform:
        check_names(make.__name__, signature, args, kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        check_numbers(make.__name__, bound.arguments)
        transform = make(*args, **kwargs)
        about = About(make.__name__, dict(bound.arguments), floats)
        return transform.replace(about=about)

    return made


def _keeps_zeros(activation: Any) -> bool:
    """Whether the activation maps zero to zero, so that a padded unit stays zero."""
    if not callable(activation):
        return True  # Those with names do.
    with jax.ensure_compile_time_eval():
        moved: Any = activation(jnp.zeros(1))
        return not bool(jnp.any(moved))


def _amended(
    field: str, argument: str, holds: Callable[[Mapping[str, Any]], bool]
) -> Callable[[Callable[_P, PeftTransform]], Callable[_P, PeftTransform]]:
    """Sets a field of `about` to `argument` if `holds` is true for the method's arguments."""

    def wrap(make: Callable[_P, PeftTransform]) -> Callable[_P, PeftTransform]:
        @functools.wraps(make)
        def made(*args: _P.args, **kwargs: _P.kwargs) -> PeftTransform:
            transform = make(*args, **kwargs)
            about = transform.about
            assert about is not None, f'{field} stands above described'
            if not holds(about.arguments):
                return transform
            return transform.replace(about=dataclasses.replace(about, **{field: argument}))

        return made

    return wrap


def padded_by(
    argument: str,
) -> Callable[[Callable[_P, PeftTransform]], Callable[_P, PeftTransform]]:
    """Declares that padding a `described` method with zeros beyond `argument` changes nothing.

    An adapter of a smaller rank (or size), padded with zeros to the shapes of a larger one,
    computes the same at the same scale, and a training step keeps the zeros. So runs with several
    ranks can share one program, see `peftjax.train.share`.

    >>> peftjax.lora(rank=2, targets=r'hidden').about.padded_by
    'rank'
    """
    return _amended('padded_by', argument, lambda given: _keeps_zeros(given.get('activation')))


def masked_by(
    argument: str, *, unless: Mapping[str, Any] | None = None
) -> Callable[[Callable[_P, PeftTransform]], Callable[_P, PeftTransform]]:
    """Declares that a `described` method can hide the first of its virtual tokens.

    An adapter with fewer virtual tokens, padded in front with rows of zeros, computes the same if
    its rules are shortened: see `CallRule.shorten`.

    Args:
      argument: name of the argument with the number of virtual tokens.
      unless: values of other arguments for which the method cannot do this.

    >>> peftjax.prefix_tuning(num_virtual_tokens=4, targets='core').about.masked_by
    'num_virtual_tokens'
    """
    other = unless or {}
    return _amended(
        'masked_by', argument, lambda given: all(given[name] != other[name] for name in other)
    )
