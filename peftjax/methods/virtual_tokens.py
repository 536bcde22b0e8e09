"""Virtual tokens: positions that a method adds to a model's sequence and takes from its outputs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.paths import TargetError, Targets
from peftjax.core.rules import ROOT, CallRule, ModuleRule, Rule
from peftjax.core.sites import ModuleSite
from peftjax.core.use import ModelCall, ModuleUse

Places = tuple[int, ...]
"""For each virtual token, ascending, before which token of the sequence it stands."""


def embedding_of(model: Model, targets: Targets) -> ModuleSite:
    """The one embedding module that is meant.

    Raises:
      TargetError: the targets match several modules.
    """
    sites = model.sites.match_modules(targets)
    if len(sites) != 1:
        raise TargetError(
            f'target {targets!r} matches {[site.path for site in sites]}; virtual tokens go '
            'through one embedding, write its path'
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
    """What puts `prompt: [n, features]` into the sequence that the embedding at `path` sees.

    Outputs lose the virtual positions again unless `keep`; tokens are numbered with the virtual
    ones among them if `shift`.
    """
    return {
        ROOT: CallRule((), _longer_call(places, keep, shift), virtual_tokens=len(places)),
        path: ModuleRule({'prompt': prompt}, _embed(path, places)),
    }


def check_places(places: Any, count: int) -> Places:
    """`places`, or all in front.

    Raises:
      ValueError: not one ascending whole number of at least 0 for each virtual token.
    """
    if places is None:
        return (0,) * count
    given = tuple(places)
    if len(given) != count or list(given) != sorted(given) or any(place < 0 for place in given):
        raise ValueError(
            f'places must be {count} ascending numbers of at least 0, one for each virtual token, '
            f'got {given}; write for example places={tuple(range(count))}'
        )
    return given


def moved_positions(
    call: ModelCall, length: int, moved: Integer[jax.Array, ' {length}'] | Integer[jax.Array, '']
) -> Integer[jax.Array, '_ {length}']:
    """`position_ids` of a call, given or `0 .. length - 1`, moved by one or `[length]` numbers.

    Raises:
      ValueError: packed rows whose positions only the model knows.
    """
    given = call.keywords.get('position_ids')
    if given is not None:
        return given + moved[None]
    if call.keywords.get('segment_ids') is not None:
        raise ValueError(
            'virtual tokens move positions, and those of packed rows are counted inside the '
            'model; give position_ids beside segment_ids'
        )
    return (jnp.arange(length) + moved)[None]


def tokens_of(call: ModelCall) -> Integer[jax.Array, 'B L']:
    """The token ids of a call: `input_ids`, or its first array.

    Raises:
      ValueError: they are not `[batch, length]` integers.
    """
    arrays = jax.tree.leaves((call.args, call.keywords))
    ids = call.keywords.get('input_ids', arrays[0] if arrays else None)
    if not isinstance(ids, jax.Array) or ids.ndim != 2 or ids.dtype.kind not in 'iu':
        raise ValueError(f'virtual tokens need token ids [batch, length], found {ids!r}')
    return ids


def _order(
    places: Places, length: int
) -> tuple[Integer[np.ndarray, ' n'], Integer[np.ndarray, ' {length}']]:
    """Of the longer sequence: where virtual and where real tokens stand."""
    if max(places) > length:
        raise ValueError(f'a virtual token stands before token {max(places)}, of {length} tokens')
    virtual = np.asarray(places) + np.arange(len(places))
    return virtual, np.setdiff1d(np.arange(length + len(places)), virtual)


def _longer_call(places: Places, keep: bool, shift: bool) -> Callable[[Any, ModelCall], Any]:
    def apply(_: Any, call: ModelCall) -> Any:
        if call.follows:
            return call.run(*call.args, **call.keywords)
        if 'decoder_input_ids' in call.takes:
            raise ValueError(
                'encoder and decoder look their tokens up in one embedding, and a prompt would go '
                'into both; write prefix_tuning for this model'
            )
        shape = tokens_of(call).shape
        length = shape[1]
        virtual, real = _order(places, length)

        def longer(name: str, value: Any) -> Any:
            if not isinstance(value, jax.Array) or value.shape not in (shape, (1, length)):
                return value
            if name == 'segment_ids':
                raise ValueError(
                    'a virtual token would belong to one segment of a packed row; give '
                    'attention_mask in place of segment_ids, and one example a row'
                )
            # A place holder that is embedded and replaced, and that attention sees.
            filled = jnp.full((len(value), len(virtual)), name == 'attention_mask', value.dtype)
            whole = jnp.zeros((len(value), length + len(virtual)), value.dtype)
            return whole.at[:, virtual].set(filled).at[:, real].set(value)

        keywords = {name: longer(name, value) for name, value in call.keywords.items()}
        given = call.keywords.get('position_ids') is not None
        if not (given or shift) and 'position_shift' in call.takes:
            shifts = jnp.zeros((1, length + len(virtual)), jnp.int32)
            keywords['position_shift'] = shifts.at[:, real].set(np.arange(length) - real)
        elif not (given or shift):
            keywords['position_ids'] = longer('', moved_positions(call, length, jnp.zeros((), int)))
        elif shift and given:
            moved = moved_positions(call, length, jnp.asarray(real - np.arange(length)))
            whole = jnp.zeros((len(moved), length + len(virtual)), moved.dtype)
            keywords['position_ids'] = whole.at[:, virtual].set(virtual).at[:, real].set(moved)
        result = call.run(*(longer('', value) for value in call.args), **keywords)
        # A first call of several gives the logits of the last token, and a cache that keeps all.
        if keep or call.keywords.get('cache_length') is not None:
            return result
        # Of tokens that were scored there is a number each: [batch, length] and no features.
        rank = 2 if call.keywords.get('targets') is not None else 3
        return jax.tree.map(lambda leaf: _shorter(leaf, real, len(virtual), rank), result)

    return apply


def _shorter(leaf: Any, real: np.ndarray, count: int, rank: int) -> Any:
    """Without the virtual positions, where `leaf` has them: `[batch, length, ...]` of that rank."""
    if leaf.ndim >= rank and leaf.shape[1] == len(real) + count:
        return leaf[:, real]
    return leaf


def _embed(path: str, places: Places) -> Callable[[Any, ModuleUse], jax.Array]:
    def apply(
        leaves: Mapping[str, Float[jax.Array, '...']], use: ModuleUse
    ) -> Float[jax.Array, 'B L features']:
        prompt, output = leaves['prompt'], use.output
        if use.follows:
            return output
        if prompt.shape[1:] != output.shape[-1:]:
            raise AdapterError(
                f"the adapter's prompt for {path!r} is {prompt.shape} {prompt.dtype}, but the "
                f'module returns {output.shape} {output.dtype}. Was it made for another model?'
            )
        virtual, _ = _order(places, output.shape[1] - len(places))
        return output.at[:, virtual].set(prompt.astype(output.dtype))

    return apply
