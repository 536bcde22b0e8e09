"""Chooses the next token from the logits."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Greedy by default; with a temperature, a draw from the tokens that top_k and top_p keep.

    Attributes:
        temperature: the divisor of the logits; 0 takes the most probable token.
        top_k: keep only this number of the most probable tokens; None for all.
        top_p: after temperature and `top_k`, keep the fewest most probable tokens whose
            probabilities sum to at least this; 1 for all.

    Raises:
        ValueError: temperature is below 0 or not finite, top_k is below 1, or top_p is outside
            (0, 1].

    Example:
        >>> Sampling(temperature=0.7, top_p=0.9)
        Sampling(temperature=0.7, top_k=None, top_p=0.9)

    Source: Fan et al. 2018 (arXiv:1805.04833), section 5.4, for top-k; Holtzman et al. 2019
    (arXiv:1904.09751), section 3.1, for top-p. Ties at the edge of top-k are all kept.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float('inf'):
            raise ValueError(f'temperature must be a number of at least 0, got {self.temperature}')
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f'top_k must be at least 1, or None, got {self.top_k}')
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p must lie in (0, 1], got {self.top_p}')

    def choose(self, logits: Float[jax.Array, 'B V'], key: PRNGKeyArray) -> Int32[jax.Array, ' B']:
        """One token for each row: [B, V] -> int32 [B]."""
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        left = self.left(logits.astype(jnp.float32))
        return jax.random.categorical(key, left).astype(jnp.int32)

    def left(self, logits: Float[jax.Array, 'B V']) -> Float[jax.Array, 'B V']:
        """Logits divided by the temperature, -inf for tokens that are not kept: float [B, V]."""
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            order = jnp.argsort(-logits, axis=-1)
            falling = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
            # A token is kept while the tokens before it sum to less.
            kept = jnp.cumsum(falling, axis=-1) - falling < self.top_p
            back = jnp.argsort(order, axis=-1)
            logits = jnp.where(jnp.take_along_axis(kept, back, axis=-1), logits, -jnp.inf)
        return logits
