"""From a decoder's states to logits, or to the scores of given tokens a few logits at a time."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.chunks import cut, join

CHUNK = 128  # positions of each row whose logits are held at the same time


class TokenScores(NamedTuple):
    """How well each position predicts the token that it should.

    A target below 0, such as -100, is no token, and its position is not counted.

    Attributes:
        losses: cross-entropy in nats, float32 [B, T]; 0 at positions that are not counted.
        correct: whether the target has the largest logit, bool [B, T].
        counted: whether there is a target, bool [B, T].
    """

    losses: jax.Array
    correct: jax.Array
    counted: jax.Array

    def mean(self) -> jax.Array:
        """The mean loss of the counted positions, float32 []; 0 if there are none."""
        return self.losses.sum() / jnp.maximum(self.counted.sum(dtype=jnp.float32), 1.0)


def read_out(
    x: jax.Array,
    embed: nn.Embed,
    *,
    tied: bool,
    targets: jax.Array | None,
    finish: Callable[[jax.Array], jax.Array] = lambda logits: logits,
) -> jax.Array | TokenScores:
    """Logits [B, T, V] of the states x [B, T, D], or the scores of targets int [B, T].

    Targets below 0 are not counted. The head is the embedding if `tied`, else a new `lm_head`
    without bias; call this function inside a compact method. finish: is applied to the head's
    logits, such as a soft cap.

    Rows longer than 128 are scored in chunks of up to 128 positions, which are computed again in
    the backward pass: `B x 128 x V` logits are held instead of `B x T x V`. Losses are in float32.

    Raises:
        ValueError: targets and states differ in [B, T].
    """
    head = embed
    if not tied:
        head = nn.Dense(
            embed.num_embeddings,
            use_bias=False,
            dtype=embed.dtype,
            param_dtype=embed.param_dtype,
            name='lm_head',
        )

    def logits(head: nn.Module, x: jax.Array) -> jax.Array:
        return finish(head.attend(x) if isinstance(head, nn.Embed) else head(x))

    if targets is None:
        return logits(head, x)
    if targets.shape != x.shape[:2]:
        raise ValueError(
            f'targets must be {list(x.shape[:2])}, a token for each position, got '
            f'{list(targets.shape)}; a call with cache_length takes no targets'
        )

    def score(head: nn.Module, carry: tuple[()], part: tuple[jax.Array, jax.Array]):
        states, wanted = part
        values = logits(head, states).astype(jnp.float32)
        counted = wanted >= 0
        token = jnp.where(counted, wanted, 0)
        chosen = jnp.take_along_axis(values, token[..., None], axis=-1)[..., 0]
        losses = jnp.where(counted, jax.nn.logsumexp(values, axis=-1) - chosen, 0.0)
        return carry, TokenScores(losses, jnp.argmax(values, axis=-1) == wanted, counted)

    once = score if x.shape[1] <= CHUNK else nn.remat(score, prevent_cse=False)
    chunked = nn.scan(once, variable_broadcast='params', split_rngs={'params': False})
    _, scores = chunked(head, (), (cut(x, CHUNK), cut(targets, CHUNK)))
    return jax.tree.map(lambda each: join(each, x.shape[1]), scores)
