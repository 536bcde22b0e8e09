"""A call of a model, with its arguments by name and by role."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.model import Model
from peftjax.core.paths import parent
from peftjax.core.roles import BESIDE, Roles
from peftjax.core.tokens import Tokens


def by_name(signature: inspect.Signature, args: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names in the signature, and the arguments of the binding."""
    takes = signature.parameters
    starred = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    beside = {n: v for n, v in keywords.items() if n not in takes and (n in BESIDE or not starred)}
    own = {name: value for name, value in keywords.items() if name not in beside}
    return {**signature.bind(*args, **own).arguments, **beside}


def by_place(signature: inspect.Signature, named: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """`(args, keywords)` of arguments by name; undoes `by_name`."""
    own = {name: value for name, value in named.items() if name in signature.parameters}
    bound = inspect.BoundArguments(signature, own)  # pyright: ignore[reportArgumentType] (any order)
    beside = {name: value for name, value in named.items() if name not in own}
    return bound.args, {**bound.kwargs, **beside}


def tokens_of(model: Model, args: Any, keywords: Mapping[str, Any]) -> Callable[..., Tokens]:
    """`at(path, number=None)`: the tokens that the module or leaf at `path` sees in a call.

    number: the index of this call among the calls of the module in one call of the model, from 0.
    """

    def at(path: str, number: int | None = None) -> Tokens:
        roles = model.roles
        if roles is None:
            raise ValueError(
                f'the tokens at {path!r} are needed, but this model declares no roles: write '
                "peftjax.wrap(..., roles=peftjax.Roles(token_ids='...', mask='...'))"
            )
        if keywords.get('method') is not None:
            raise ValueError(
                f'the tokens at {path!r} are needed, but roles are about __call__: call the model '
                'without method='
            )
        if _goes_on(keywords.get('state'), keywords.get('mutable')):
            raise ValueError(
                f"the tokens at {path!r} are needed, but a call with Flax's own cache sees a part "
                'of an example: call the model on whole rows, without that state'
            )
        return _tokens(roles, by_name(model.signature, args, keywords), path, number)

    return at


def _goes_on(state: Any, mutable: Any) -> bool:
    """Whether a call continues with keys and values that Flax's modules keep as state."""
    if mutable is True:  # Everything may change, a cache too.
        return True
    collections = (mutable,) if isinstance(mutable, str) else mutable
    if isinstance(collections, list | tuple) and 'cache' in collections:
        return True
    if isinstance(state, Mapping) and 'cache' in state:
        return True
    nnx: Any = sys.modules.get('flax.nnx')  # `import peftjax` does not bring it.
    if state is None or nnx is None:
        return False
    kept = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return any(isinstance(leaf, nnx.Cache) for leaf in kept)


def _tokens(roles: Roles, named: Mapping[str, Any], path: str, number: int | None) -> Tokens:
    roles.check_known(named, f'{path!r}')
    written = roles.matches('decoder', path) and not roles.matches('crossing', path)
    shared = roles.decoder_ids and roles.token_ids and not roles.matches('decoder', path)
    if shared and (roles.matches('embedding', path) or roles.matches('embedding', parent(path))):
        if number not in (0, 1):
            raise ValueError(
                f'the tokens at {path!r} are needed, but it sees tokens of the encoder and of the '
                'decoder; leave it out of the targets'
            )
        written = number == 1 or named.get(roles.cache) is not None
    ids = named.get(roles.decoder_ids if written else roles.token_ids)
    mask = named.get(roles.decoder_mask if written else roles.mask)
    if mask is not None and jnp.ndim(mask) != 2:
        name = roles.decoder_mask if written else roles.mask
        raise ValueError(
            f'the argument {name!r} has the role of a mask, which is [batch, length] with 1 for '
            f'tokens and 0 for padding, but has the shape {list(jnp.shape(mask))}'
        )
    return Tokens(
        None if mask is None else jnp.asarray(mask).astype(jnp.int32) == 1,
        None if written else named.get(roles.segments),
        named.get(roles.cache) is not None,
        named.get(roles.cache_length) is not None,
        jnp.shape(ids)[:2] if ids is not None else None,
        written and bool(roles.token_ids),
        None if ids is None or jnp.ndim(ids) != 2 else jnp.asarray(ids),
    )
