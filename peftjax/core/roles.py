"""Roles: what the arguments and the modules of a model are for, declared and never guessed."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from peftjax.core.paths import TargetError
from peftjax.core.patterns import matcher

_ARGUMENTS = (
    *('token_ids', 'mask', 'positions', 'position_shift', 'prefix_length', 'segments', 'targets'),
    *('features', 'decoder_ids', 'decoder_mask', 'cache', 'cache_length'),
)
# Arguments of the binding, not of the model; they say nothing about tokens.
BESIDE = ('rngs', 'mutable', 'state', 'capture_intermediates')
_MODULES = ('embedding', 'attention', 'residual_end', 'decoder', 'crossing')


@dataclasses.dataclass(frozen=True)
class Roles:
    r"""What the arguments and the modules of a model are for.

    The models of `peftjax.load` declare their roles. For your own model, write `wrap(...,
    roles=Roles(...))`, or set `peftjax_roles` on its class. An empty string means that the model
    has no such argument or module. If a method needs a role that is not declared, `init` raises an
    error. If a method asks for the tokens of a call, every array argument must have a role.

    Letters: `B` examples, `T` tokens of each.

    Attributes:
      token_ids: name of the argument with integers `[B, T]` that are looked up in `embedding`.
      mask: of the argument `[B, T]` with 1 for tokens and 0 for padding; left out, all are tokens.
      positions: of the integers `[B, T]`; left out, the model counts from 0, anew in each segment.
      position_shift: of a number that the model adds to the positions that it counts itself; for
        the sequence in `decoder_ids` if there is no other.
      prefix_length: of an integer: how many keys a method puts in front of the keys of each
        attention. A model with a bias by distance then gives its core the `prefix_bias` of these
        keys, which stand directly before the first token of each row; padding does not count. The
        core then gets `bias` as a tuple: first that of these keys, then the model's own.
      by_distance: True for a model that knows the distances of tokens and counts no positions, such
        as T5.
      segments: of the integers `[B, T]` that tell packed examples apart.
      targets: of the integers `[B, T]` that make the model return one number for each token.
      features: of an array that an encoder reads in place of tokens, such as a spectrogram.
      decoder_ids, decoder_mask: of a second sequence, which the model writes.
      cache: of the argument that holds what earlier calls computed.
      cache_length: of the number that makes a call the first of several.
      along: names of other arguments `[B, T]`; a virtual token gets a 0 there.
      other: names of the arrays that say nothing about tokens, such as an image.
      embedding: regular expression, full match on the path of the module that embeds tokens. Where
        an encoder and a decoder share it, a call of the model embeds `token_ids` first.
      attention: of modules without parameters that are called with query `[B, T, N, H]`, key and
        value `[B, S, K, H]`, and optionally with `mask` and `bias` by these names. They must accept
        more keys than the model gives them. So everything that hides a key, including later tokens,
        must be in `mask` (1 or True for a visible key). `bias` is added to the scores. Attention
        modules of Flax are recognised without this role.
      residual_end: of modules called with `(residual, output, after)`, which return `output`: the
        end of a sublayer, before it joins the residual.
      decoder: of the modules and leaves that see the second sequence.
      crossing: of the modules and leaves of the decoder that see the first sequence.

    Raises:
      ValueError: a pattern is not a regular expression.
      TypeError: `along` or `other` is a string and not a tuple of names.

    >>> peftjax.Roles(token_ids='ids', mask='padding', embedding=r'embed').mask
    'padding'
    """

    token_ids: str = ''
    mask: str = ''
    positions: str = ''
    position_shift: str = ''
    prefix_length: str = ''
    by_distance: bool = False
    segments: str = ''
    targets: str = ''
    features: str = ''
    decoder_ids: str = ''
    decoder_mask: str = ''
    cache: str = ''
    cache_length: str = ''
    along: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    embedding: str = ''
    attention: str = ''
    residual_end: str = ''
    decoder: str = ''
    crossing: str = ''

    def __post_init__(self) -> None:
        for name in ('along', 'other'):
            if isinstance(getattr(self, name), str):
                raise TypeError(
                    f'Roles({name}={getattr(self, name)!r}) is a text; write a tuple of names, '
                    f'{name}=({getattr(self, name)!r},)'
                )
        for name in _MODULES:
            try:
                matcher(getattr(self, name))
            except re.error as error:
                raise ValueError(
                    f'Roles({name}={getattr(self, name)!r}) is no regular expression: {error}'
                ) from error

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of all arguments that have a role."""
        named = (getattr(self, name) for name in _ARGUMENTS)
        return (*(name for name in named if name), *self.along, *self.other)

    @property
    def prompted(self) -> 'Roles':
        """The roles of the sequence that gets virtual tokens, as in a model with one sequence.

        This is the sequence in `token_ids`, or in `decoder_ids` if there is no other.
        """
        alone = {'decoder_ids': '', 'decoder_mask': ''}
        if not self.decoder_ids:
            return self
        if self.token_ids:  # The targets belong to the other one.
            return dataclasses.replace(self, targets='', **alone)
        return dataclasses.replace(
            self, token_ids=self.decoder_ids, mask=self.decoder_mask, **alone
        )

    def matches(self, role: str, path: str) -> bool:
        """Whether the module at `path` has a role of modules, such as `'attention'`."""
        pattern = getattr(self, role)
        return bool(pattern) and matcher(pattern).fullmatch(path)

    def check_known(self, arguments: Mapping[str, Any], where: str) -> None:
        """Raises `ValueError` if an array among arguments by name has no role.

        Args:
          arguments: of a call.
          where: name of the method, for the message.
        """
        for name, value in arguments.items():
            arrays = [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, 'shape')]
            if arrays and name not in (*self.arguments, *BESIDE):
                raise ValueError(
                    f'{where} needs to know the tokens of a call, and the role of the argument '
                    f'{name!r} {arrays[0].dtype}{list(arrays[0].shape)} is not declared: write its '
                    f'role, for example peftjax.Roles(mask={name!r}), or other=({name!r},) if it '
                    'says nothing about them'
                )

    def check(self, takes: Iterable[str]) -> None:
        """Raises `TypeError` if a role names an argument that is not in `takes`."""
        takes = tuple(takes)
        for name in self.arguments:
            if name not in takes:
                raise TypeError(
                    f'roles name the argument {name!r}, but the model takes {", ".join(takes)}; '
                    'write a name from its signature'
                )


def parameters_of(call: inspect.Signature) -> tuple[str, ...]:
    """The explicit parameter names of a signature."""
    starred = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return tuple(name for name, each in call.parameters.items() if each.kind not in starred)


def require(
    roles: Roles | None,
    takes: tuple[str, ...],
    method: str,
    *names: str,
    example: tuple[str, ...] = ('token_ids', 'mask'),
) -> Roles:
    """`roles`, if all of these are declared; `example`: what to show where none is named.

    Raises:
      TargetError: one of them is not declared. The message has the line to write.
    """
    missing = [name for name in names if roles is None or not getattr(roles, name)]
    if roles is not None and not missing:
        return roles
    shown = ', '.join(f"{name}='...'" for name in missing or example)
    raise TargetError(
        f'{method} needs to know the roles of this model, and '
        f'{"none are" if roles is None else "these are not"} declared: write '
        f'peftjax.wrap(..., roles=peftjax.Roles({shown})); the model takes {", ".join(takes)}'
    )
