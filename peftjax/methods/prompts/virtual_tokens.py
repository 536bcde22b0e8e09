"""Virtual tokens: positions that a method adds to a sequence and removes from the outputs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.paths import TargetError, Targets
from peftjax.core.roles import Roles, require
from peftjax.core.rules import ROOT, CallRule, ModuleRule, Rule
from peftjax.core.sites import ModuleSite
from peftjax.core.tokens import segment_positions
from peftjax.core.use import ModelCall, ModuleUse
from peftjax.methods.prompts.virtual_order import Order, Places, order_of, with_hidden


def embedding_of(model: Model, targets: Targets | None, method: str) -> ModuleSite:
    """The embedding module that `targets` match, by default the one of the role `embedding`.

    Raises:
      TargetError: the targets match several modules; the model has neither the role `token_ids` nor
        `decoder_ids`; the module does not embed the sequence that virtual tokens go into.
    """
    own = model.roles or Roles()
    writes, heard = bool(own.decoder_ids), bool(own.decoder_ids and not own.token_ids)
    needed = ('decoder_ids' if heard else 'token_ids',)
    needed += ('embedding',) if targets is None else ()
    roles = require(model.roles, model.takes, method, *needed)
    targets = roles.embedding if targets is None else targets
    sites = model.sites.match_modules(targets)
    if len(sites) != 1:
        raise TargetError(
            f'target {targets!r} matches {[site.path for site in sites]}, but virtual tokens go '
            'through one embedding; write its path'
        )
    if writes and roles.matches('decoder', sites[0].path) != heard:
        where = 'decoder' if heard else 'encoder'
        raise TargetError(
            f'virtual tokens of this model go among the tokens {roles.prompted.token_ids!r} of its '
            f'{where}, but {sites[0].path!r} is not in it; write targets={roles.embedding!r}'
        )
    return sites[0]


def table_of(model: Model, site: ModuleSite) -> str:
    """The path of an embedding's `[vocabulary, features]` leaf.

    Raises:
      TargetError: it has none, or several.
    """
    leaves = [
        path
        for path, leaf in model.sites.weights.items()
        if path.startswith(f'{site.path}/') and leaf.shape[1:] == (site.features,)
    ]
    if len(leaves) != 1:
        raise TargetError(
            f'module {site.path!r} {site.shape} {site.dtype} holds no table of tokens '
            f'[vocabulary, {site.features}]; write the path of the word embedding'
        )
    return leaves[0]


def rules_of(
    path: str, prompt: jax.Array, places: Places, keep: bool, shift: bool = True
) -> dict[str, Rule]:
    """The rules that put `prompt: [n, features]` into the sequence that the embedding at `path`
    sees.

    Outputs lose the virtual positions again unless `keep`. If `shift`, virtual tokens count in the
    positions of the tokens.
    """

    def of_call(length: jax.Array | None = None) -> CallRule:
        apply = _longer_call(places, keep, shift, length)
        return CallRule((), apply, len(places), keep, of_call)

    def of_embedding(length: jax.Array | None = None) -> ModuleRule:
        # The place of a virtual token may depend on tokens of a later call.
        whole, apply = max(places) > 0, _embed(path, places, length)
        return ModuleRule(
            {'prompt': prompt}, apply, whole=whole, shorten=of_embedding, only_virtual=True
        )

    return {ROOT: of_call(), path: of_embedding()}


def positions_of(call: ModelCall, length: int) -> Integer[jax.Array, '_ {length}']:
    """The positions of a call's tokens: those given, or counted from 0 in each segment."""
    given = call.given('positions')
    if given is not None:
        return given
    segments = call.given('segments')
    if segments is None:
        return jnp.arange(length, dtype=jnp.int32)[None]
    return segment_positions(segments)


def token_ids_of(call: ModelCall) -> Integer[jax.Array, 'B L']:
    """The token ids of a call.

    Raises:
      ValueError: they are not `[batch, length]` integers.
    """
    ids = call.given('token_ids')
    if not hasattr(ids, 'shape') or ids.ndim != 2 or ids.dtype.kind not in 'iu':
        raise ValueError(
            f'virtual tokens need token ids [batch, length] in the argument '
            f'{call.roles.token_ids!r}, found {ids!r}'
        )
    return jnp.asarray(ids)


def _longer_call(
    places: Places, keep: bool, shift: bool, length: jax.Array | None
) -> Callable[[Any, ModelCall], Any]:
    if length is not None and (keep or max(places)):
        raise ValueError(
            'prompts of several lengths must stand in front of the tokens and leave the outputs; '
            f'found places={places}, keep_virtual={keep}; leave both out'
        )

    def apply(_: Any, call: ModelCall) -> Any:
        if call.follows:
            return call.run(call.arguments)
        _check(call)
        # In an encoder-decoder, the first of several calls gives the encoder its whole text.
        begins = call.given('cache_length') is not None
        parts = begins and not (call.roles.decoder_ids and call.roles.token_ids)
        call = dataclasses.replace(call, roles=call.roles.prompted)
        moves = shift and not call.roles.by_distance
        if length is not None:
            call = _with_mask_and_positions(call, moves)
        ids = token_ids_of(call)
        known = call.given('mask') is None and max(places) <= ids.shape[1]
        if parts and max(places) and not known:
            raise ValueError(
                f'places={places} may come after the tokens of the first call, which sees a part '
                'of an example; call the model on whole rows, or leave places out'
            )
        order = order_of(places, ids.shape[1] + len(places), _longer_mask(call, len(places)))
        changed = _longer(call, ids, order, moves)
        if length is not None:
            changed |= _shorter(call.roles, changed, order, moves, length)
        result = call.run({**call.arguments, **changed})
        # The first of several calls returns the logits of the last token, and a cache of all.
        if keep or begins:
            return result
        return jax.tree.map(order.as_without, result, call.shapes(call.arguments))

    return apply


def _with_mask_and_positions(call: ModelCall, shift: bool) -> ModelCall:
    """The call with the arguments that hide some of the virtual tokens.

    Raises:
      ValueError: the model has no role for one of them.
    """
    roles, ids = call.roles, token_ids_of(call)
    if not roles.mask or (shift and not (roles.positions or roles.position_shift)):
        raise ValueError(
            'prompts of several lengths need a mask that hides unused virtual tokens, and '
            f'positions that skip them; the model has the roles mask={roles.mask!r} and positions='
            f"{roles.positions!r}; write peftjax.wrap(..., roles=peftjax.Roles(mask='...', "
            "positions='...')), with by_distance=True for a model that counts none"
        )
    given = dict(call.arguments)
    if call.given('mask') is None:
        given[roles.mask] = jnp.ones_like(ids)
    if shift and call.given('positions') is None and not roles.position_shift:
        given[roles.positions] = jnp.broadcast_to(positions_of(call, ids.shape[1]), ids.shape)
    return dataclasses.replace(call, arguments=given)


def _shorter(
    roles: Roles, changed: Mapping[str, Any], order: Order, shift: bool, length: jax.Array
) -> dict[str, Any]:
    """The arguments that hide all but the last `length` of the virtual tokens."""
    hidden = order.count - length
    mask = changed[roles.mask]
    seen = (order.virtual < 0) | (order.virtual >= hidden)
    found: dict[str, Any] = {roles.mask: jnp.where(seen, mask, jnp.zeros_like(mask))}
    if shift and roles.positions in changed:
        positions = changed[roles.positions]
        found[roles.positions] = jnp.maximum(positions - hidden.astype(positions.dtype), 0)
    elif shift:
        found[roles.position_shift] = -hidden
    return found


def _check(call: ModelCall) -> None:
    """Raises `ValueError` for calls into which a virtual token does not fit."""
    if call.given('segments') is not None:
        raise ValueError(
            'a virtual token would belong to one segment of a packed row; give '
            f'{call.roles.mask or "a mask"} in place of {call.roles.segments}, and one example in '
            'each row'
        )
    call.roles.check_known(call.arguments, 'a virtual token')


def _longer_mask(call: ModelCall, count: int) -> Bool[jax.Array, 'B L'] | None:
    """The mask of the longer row, with `count` more tokens where the tokens begin."""
    mask = call.given('mask')
    if mask is None:
        return None
    real = jnp.asarray(mask).astype(jnp.int32) == 1
    # Padding keeps its length on both sides.
    start = jnp.argmax(real, axis=1, keepdims=True)
    slot = jnp.arange(real.shape[1] + count)[None]
    behind = jnp.take_along_axis(real, jnp.clip(slot - count, 0, real.shape[1] - 1), axis=1)
    return (slot >= start) & ((slot < start + count) | behind)


def _longer(
    call: ModelCall, ids: Integer[jax.Array, 'B T'], order: Order, shift: bool
) -> dict[str, Any]:
    """The arguments that change for the longer sequence."""
    roles, length = call.roles, ids.shape[1]
    # Placeholders, whose embeddings the prompt replaces.
    changed = {roles.token_ids: order.spread(ids, 0)}
    # What a virtual token predicts is not counted.
    for name, filled in ((roles.targets, -100), *((name, 0) for name in roles.along)):
        if call.arguments.get(name) is not None:
            changed[name] = order.spread(jnp.asarray(call.arguments[name]), filled)
    if call.given('mask') is not None:
        changed[roles.mask] = order.spread(jnp.asarray(call.given('mask')), 1)
    positions = call.given('positions')
    if positions is not None:
        changed[roles.positions] = _moved(jnp.asarray(positions), order, shift)
    elif not shift and roles.position_shift:
        changed[roles.position_shift] = jnp.where(order.virtual >= 0, 0, -order.before)
    elif not shift and roles.positions:
        changed[roles.positions] = order.spread(positions_of(call, length), 0)
    return changed


def _moved(
    positions: Integer[jax.Array, 'B T'], order: Order, shift: bool
) -> Integer[jax.Array, 'B L']:
    """Given positions in the longer row, moved by the virtual tokens before them if `shift`."""
    spread = order.spread(positions, 0)
    if not shift:
        return spread
    rows = len(spread)
    start = jnp.broadcast_to(order.start, (rows, 1))
    first = jnp.take_along_axis(jnp.broadcast_to(positions, (rows, positions.shape[1])), start, 1)
    own = first + jnp.arange(spread.shape[1], dtype=spread.dtype)[None] - order.start
    return jnp.where(order.virtual >= 0, own, spread + order.before).astype(spread.dtype)


def _embed(
    path: str, places: Places, length: jax.Array | None
) -> Callable[[Any, ModuleUse], jax.Array]:
    def apply(
        leaves: Mapping[str, Float[jax.Array, '...']], use: ModuleUse
    ) -> Float[jax.Array, 'B L features']:
        prompt, output, tokens = leaves['prompt'], use.output, use.tokens()
        if tokens.follows:
            return output
        if prompt.shape[1:] != output.shape[-1:]:
            raise AdapterError(
                f"the adapter's prompt for {path!r} is {prompt.shape} {prompt.dtype}, but the "
                f'module returns {output.shape} {output.dtype}. Was it made for another model?'
            )
        tokens.check(output.shape, f'a prompt at {path!r}')
        if tokens.written:  # The embedding's call for the decoder.
            return output
        if use.number:
            raise ValueError(
                f'{path!r} is called several times in one call of the model, but a prompt goes '
                'into the tokens of one of them; write prefix_tuning for this model'
            )
        real = tokens.real
        if length is not None and real is not None:
            real = with_hidden(real, len(places) - length)
        virtual = order_of(places, output.shape[1], real).virtual[..., None]
        return jnp.where(virtual >= 0, prompt.astype(output.dtype)[virtual[..., 0]], output)

    return apply
