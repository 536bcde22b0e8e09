"""A model as a value."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax

from peftjax.core import paths, readable
from peftjax.core.roles import Roles, parameters_of
from peftjax.core.sites import Sites


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model as a value: a pure function, its parameters, and the sites it offers.

    A pytree whose leaves are `params`, so that it passes through `jit`, `vmap` and `eval_shape`.

    Attributes:
      apply: `apply(params, *args, **kwargs)`, pure.
      params: nested dict of arrays, or of `jax.ShapeDtypeStruct` for planning.
      sites: where methods can act.
      traceable: `apply` with a tag on every module output, which the binding reads; same results.
      config, tokenizer: those of the checkpoint, if it has any.
      roles: what its arguments and modules are for; None if nobody declared them.
      signature: of a call, without `params`.
      fresh: paths of leaves that are not in the checkpoint and start at random (a new head). Write
        `model.replace(params=..., fresh=())` once they are trained.
      only_here: why other libraries compute something else with the same weights; '' if they
        compute the same. Adapters of such a model are not written in the formats of these
        libraries.
      untied: True if the head is a copy of an embedding, and the checkpoint ties the two.
    """

    apply: Callable[..., Any]
    params: Any
    sites: Sites
    traceable: Callable[..., Any]
    config: Any = None
    tokenizer: Any = None
    roles: Roles | None = None
    signature: inspect.Signature = inspect.Signature()
    fresh: tuple[str, ...] = ()
    only_here: str = ''
    untied: bool = False

    @property
    def takes(self) -> tuple[str, ...]:
        """The model's explicit parameter names (no `*args` or `**kwargs`)."""
        return parameters_of(self.signature)

    def replace(self, **changes: Any) -> 'Model':
        """A copy with some fields changed, for example other `params`."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        leaves = [leaf for leaf in paths.flatten(self.params).values() if hasattr(leaf, 'shape')]
        count = sum(math.prod(leaf.shape) for leaf in leaves)
        config = '' if self.config is None else f' ({type(self.config).__name__})'
        heading = f'Model{config}: {count:,} parameters in {len(leaves)} leaves'
        return readable.under(heading, readable.outline(self.params, readable.MOST_LINES - 1))


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
        *(model.roles, model.signature, model.fresh, model.only_here, model.untied),
    )
    return ((jax.tree_util.GetAttrKey('params'), model.params),), _SameObjects(static)


def _unflatten_model(static: _SameObjects, children: Any) -> Model:
    apply, *rest = static.fields
    return Model(apply, children[0], *rest)


jax.tree_util.register_pytree_with_keys(Model, _flatten_model, _unflatten_model)
