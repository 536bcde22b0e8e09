"""Prompts as arrays: padded, checked, and named by the arguments of a model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from peftjax.core.roles import Roles

Ids = jax.Array | np.ndarray


def pad_left(
    rows: Sequence[Sequence[int]], pad_token_id: int = 0
) -> tuple[Int32[np.ndarray, 'B L'], Int32[np.ndarray, 'B L']]:
    """Prompts of different lengths as `input_ids` and `attention_mask`, int32 [B, longest].

    Args:
        rows: token ids of each prompt, at least one.
        pad_token_id: the padding before shorter prompts.

    Raises:
        ValueError: there is no prompt, or a prompt has no tokens.
        TypeError: a prompt is a text.

    Example:
        >>> ids, mask = pad_left([[5, 6, 7], [8]])
        >>> ids.tolist(), mask.tolist()
        ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    if isinstance(rows, str) or any(isinstance(row, str) for row in rows):
        raise TypeError('rows are token ids; write model.tokenizer.encode(text) for each text')
    if not len(rows) or not all(len(row) for row in rows):
        raise ValueError(f'every prompt needs a token, got lengths {[len(row) for row in rows]}')
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad_token_id, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for number, row in enumerate(rows):
        ids[number, length - len(row) :] = row
        mask[number, length - len(row) :] = 1
    return ids, mask


def read_prompts(roles: Roles, input_ids: Ids, attention_mask: Ids | None) -> dict[str, jax.Array]:
    """The prompts as arguments of the model's first call."""
    if not roles.token_ids:
        if attention_mask is not None:
            raise ValueError(
                f'a model that takes {roles.features} has no attention_mask; leave it out'
            )
        return {roles.features: jnp.asarray(input_ids)}
    mask = np.ones_like(input_ids) if attention_mask is None else np.asarray(attention_mask)
    _check(np.asarray(input_ids), mask, right=bool(roles.decoder_ids))
    return {
        roles.token_ids: jnp.asarray(input_ids, jnp.int32),
        roles.mask: jnp.asarray(mask, jnp.int32),
    }


def _check(ids: np.ndarray, mask: np.ndarray, *, right: bool) -> None:
    """Raises `ValueError` for wrong prompts. right: whether padding may be on the right."""
    if ids.ndim != 2 or ids.dtype.kind not in 'iu' or not ids.size or mask.shape != ids.shape:
        raise ValueError(
            f'input_ids {ids.dtype}{ids.shape} and attention_mask {mask.dtype}{mask.shape} must be '
            'integers [batch, length] of one shape; see peftjax.pad_left'
        )
    if not right and not mask[:, -1].all():
        row = int(np.argmin(mask[:, -1]))
        raise ValueError(
            f'row {row} of attention_mask ends with padding; pad prompts on the left, as '
            'peftjax.pad_left does'
        )
