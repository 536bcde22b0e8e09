"""How a server reads prompts: a decoder reads its own, an encoder reads them for its decoder."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from peftjax.core.roles import Roles
from peftjax.generation.loop import filled, first_call
from peftjax.generation.prompts import pad_left

# Token ids; or what an encoder reads in place of tokens, floats in the shape of one example.
Prompt = Sequence[int] | np.ndarray


class Request(NamedTuple):
    """A prompt, and the adapter that answers it.

    Attributes:
        prompt: token ids, at least one. For an encoder that reads something else (the role
          `features`), one example of it: for Whisper floats [mels, frames].
        slot: of the bank; 0 for the base.
        max_new_tokens: at least 1.
    """

    prompt: Prompt
    slot: int
    max_new_tokens: int

    @property
    def places(self) -> int:
        """Of a decoder without an encoder: the tokens of the padded prompt and of the answer."""
        return _padded(len(self.prompt)) + self.max_new_tokens


@dataclasses.dataclass(frozen=True)
class Reading:
    """The first calls of a server.

    Attributes:
        roles: of the model.
        max_length: places in the cache of a row.
        max_prompt: how many tokens an encoder reads; None for a decoder, and for features.
        start: ids that a decoder with an encoder starts with.

    Raises:
        ValueError: `max_prompt` is missing, or the model has no use for it.
    """

    roles: Roles
    max_length: int
    max_prompt: int | None
    start: tuple[int, ...]

    def __post_init__(self) -> None:
        encodes = bool(self.roles.decoder_ids) and not self.roles.features
        if encodes and self.max_prompt is None:
            raise ValueError(
                'this model has an encoder, whose prompts are padded to one length: write '
                'max_prompt=<tokens of the longest prompt>'
            )
        if not encodes and self.max_prompt is not None:
            raise ValueError(
                f'max_prompt={self.max_prompt} is for an encoder of tokens, which this model does '
                'not have; leave it out'
            )
        if self.max_prompt is not None and self.max_prompt < 1:
            raise ValueError(f'max_prompt must be at least 1, got {self.max_prompt}')

    def shape(self, prompt: Prompt) -> tuple[int, ...]:
        """Of a prompt, after padding; prompts of one shape are read together."""
        if self.roles.features:
            return np.shape(prompt)
        return (_padded(len(prompt)) if self.max_prompt is None else self.max_prompt,)

    def refusal(self, request: Request, virtual: int) -> str:
        """The reason why a request cannot be read, or ''.

        virtual: how many virtual tokens the adapters of the bank add.
        """
        if not self.roles.features and (wrong := _wrong_ids(request.prompt)):
            return wrong
        count, given = request.max_new_tokens, len(request.prompt)
        if not given or count < 1:
            return f'prompt length {given} and max_new_tokens={count}: each must be at least 1'
        if self.max_prompt is not None and given > self.max_prompt:
            return f'{given} prompt tokens are more than max_prompt={self.max_prompt}'
        tokens = 0 if self.roles.decoder_ids else self.shape(request.prompt)[0]
        before = filled(self.roles, tokens, virtual, self.start)
        if before + count > self.max_length:
            return (
                f'{before} places before the answer ({virtual} virtual tokens) and {count} for it '
                f'are more than max_length={self.max_length}'
            )
        return ''

    def arrays(self, prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """Prompts of one shape as arguments of the model."""
        if self.roles.features:
            features = np.stack([np.asarray(prompt) for prompt in prompts])
            wide = jnp.issubdtype(features.dtype, jnp.floating)  # bfloat16 too
            return {self.roles.features: features.astype(np.float32) if wide else features}
        ids, mask = pad_left([np.asarray(prompt).tolist() for prompt in prompts])
        before = ((0, 0), (self.shape(prompts[0])[0] - ids.shape[1], 0))
        return {self.roles.token_ids: np.pad(ids, before), self.roles.mask: np.pad(mask, before)}

    def first(self, read: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of the first call."""
        further = first_call(self.roles, read, self.start)
        return {**read, **further, self.roles.cache_length: self.max_length}


def _wrong_ids(prompt: Any) -> str:
    """The reason why a prompt is no list of token ids, or ''."""
    try:
        ids = np.asarray(prompt)
    except ValueError:  # Lists of several lengths.
        return 'the prompt is a list of lists; write the token ids of one text'
    if ids.ndim == 1 and (not ids.size or ids.dtype.kind in 'iu'):
        return ''
    return (
        f'the prompt is {ids.dtype}{list(ids.shape)}; write token ids [tokens], as '
        'model.tokenizer.encode(text).ids gives them'
    )


def _padded(length: int) -> int:
    """The length that the prompt of a decoder is padded to."""
    return max(16, 1 << (length - 1).bit_length())
