"""A call of a model by the names and the roles of its arguments."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.model import Model
from peftjax.core.roles import Roles
from peftjax.core.tokens import Tokens

# What bindings take besides the model's own arguments, and what none of them is about tokens.
_BESIDE = ('rngs', 'mutable', 'state', 'capture_intermediates')
_METHOD = 'method'


def by_name(signature: inspect.Signature, args: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of its signature, and what the binding takes besides."""
    takes = signature.parameters
    starred = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    beside = {n: v for n, v in keywords.items() if n not in takes and (n in _BESIDE or not starred)}
    own = {name: value for name, value in keywords.items() if name not in beside}
    return {**signature.bind(*args, **own).arguments, **beside}


def by_place(signature: inspect.Signature, named: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """`(args, keywords)` of arguments by name; undoes `by_name`."""
    own = {name: value for name, value in named.items() if name in signature.parameters}
    bound = inspect.BoundArguments(signature, own)  # pyright: ignore[reportArgumentType] (any order)
    beside = {name: value for name, value in named.items() if name not in own}
    return bound.args, {**bound.kwargs, **beside}


def tokens_of(model: Model, args: Any, keywords: Mapping[str, Any]) -> Callable[[str], Tokens]:
    """`at(path)`: the tokens that the module or the leaf at `path` sees in a call of the model."""

    def at(path: str) -> Tokens:
        roles = model.roles
        if roles is None or keywords.get(_METHOD) is not None:
            why = 'calls another method than __call__' if roles else 'has declared no roles'
            raise ValueError(
                f'{path!r} is asked for its tokens, and this model {why}: write '
                "peftjax.wrap(..., roles=peftjax.Roles(token_ids='...', mask='...'))"
            )
        return _tokens(roles, by_name(model.signature, args, keywords), path)

    return at


def _tokens(roles: Roles, named: Mapping[str, Any], path: str) -> Tokens:
    _check_all_known(roles, named, path)
    written = roles.is_('decoder', path) and not roles.is_('crossing', path)
    mask = named.get(roles.decoder_mask if written else roles.mask)
    ids = named.get(roles.decoder_ids if written else roles.token_ids)
    return Tokens(
        None if mask is None else jnp.asarray(mask).astype(jnp.int32) == 1,
        None if written else named.get(roles.segments),
        named.get(roles.cache) is not None,
        named.get(roles.cache_length) is not None,
        jnp.shape(ids)[:2] if ids is not None else None,
    )


def _check_all_known(roles: Roles, named: Mapping[str, Any], path: str) -> None:
    known = (*roles.arguments, *_BESIDE)
    for name, value in named.items():
        arrays = [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, 'shape')]
        if arrays and name not in known:
            raise ValueError(
                f'{path!r} is asked for its tokens, and what the argument {name!r} '
                f'{arrays[0].dtype}{list(arrays[0].shape)} says about them is not declared: write '
                f'its role, for example peftjax.Roles(mask={name!r}), or other=({name!r},) if it '
                'says nothing'
            )
