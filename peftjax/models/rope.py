"""Rotary position embedding, with the frequency rescalings that long-context checkpoints use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# The fields that each kind uses in addition to theta.
_READ = {
    'default': (),
    'linear': ('factor',),
    'llama3': ('factor', 'low_freq_factor', 'high_freq_factor'),
    'divisors': (),
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """How positions turn into angles: angle[t, i] = t · theta^(-2i/H) / divisor[i].

    kind: 'default' (divisor 1), 'linear' (divisor `factor`), 'llama3' (1 for short wavelengths,
    `factor` for long ones, a blend in between) or 'divisors' (the field of this name, from GGUF).

    Raises:
        ValueError: another kind; a number outside 1e-18 to 1e18, in a field that the kind
            uses; `low_freq_factor` not below `high_freq_factor`.
    """

    theta: float = 10000.0
    kind: str = 'default'
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    divisors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _READ:
            raise ValueError(
                f"rope kind {self.kind!r} is not supported: use 'default', 'linear', 'llama3' or "
                "'divisors'"
            )
        read = {name: getattr(self, name) for name in ('theta', *_READ[self.kind])}
        read |= {f'divisors[{place}]': each for place, each in enumerate(self.divisors)}
        for name, value in read.items():
            if not 1e-18 <= value <= 1e18:
                raise ValueError(f'rope: {name} is {value}; write a number from 1e-18 to 1e18')
        if self.kind == 'llama3' and not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f'rope: low_freq_factor {self.low_freq_factor} must be below high_freq_factor '
                f'{self.high_freq_factor}'
            )

    def frequencies(self, width: int) -> np.ndarray:
        """float32 [width / 2], in radians per position."""
        # In float64 on the host: an error here would be multiplied by the position.
        frequency = self.theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
        divisor = {
            'default': lambda: 1.0,
            'linear': lambda: self.factor,
            'llama3': lambda: self._llama3_divisor(frequency),
            'divisors': lambda: np.asarray(self.divisors, np.float64),
        }[self.kind]()
        return (frequency / divisor).astype(np.float32)

    def _llama3_divisor(self, frequency: np.ndarray) -> np.ndarray:
        turns = self.original_max_position_embeddings * frequency / (2 * np.pi)
        span = self.high_freq_factor - self.low_freq_factor
        # 1 for waves that turn often over the original context and are kept, 0 for those divided by
        # the whole factor; the blend is linear in the frequency.
        keep = np.clip((turns - self.low_freq_factor) / span, 0.0, 1.0)
        return 1.0 / (keep + (1.0 - keep) / self.factor)


def rotation(rope: Rope, position_ids: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, float32 [B, T, 1, width / 2], for positions [B, T] (B may be 1)."""
    angle = position_ids.astype(jnp.float32)[..., None] * rope.frequencies(width)[None, None]
    return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (x[i], x[i + H/2]) of [B, T, N, H] by their angles, elementwise in float32.

    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, in the half-split order of
    Hugging Face checkpoints.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
