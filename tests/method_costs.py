"""What each method adds to a forward pass and to a step: formulas of its FLOPs on two matrices.

Formulas in T tokens and, for each matrix, its sides i and o. The compiler counts the body of the
loop that inverts OFT's blocks once, and so do they.

A step is the model's forward pass, the gradient by its input, which goes on to the layers below,
and the gradient by the adapter. It costs three times what is added forward, where a method does
not say otherwise: products with frozen factors and what is not differentiated cost less, a trained
copy of a matrix costs its gradient.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.testing.measures import flops as compiled_flops
from tests.compiled import flops

T, SIDES = 512, ((128, 256), (256, 128))


class _Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(128, name='down')(nn.Dense(256, name='up')(x))


X = jnp.ones((8, 64, 128))


@functools.cache
def matrices():
    roles = peftjax.Roles(other=('x',))
    return peftjax.wrap(_Two(), _Two().init(jax.random.key(0), X), {'x': X}, roles=roles)


@dataclasses.dataclass(frozen=True)
class Cost:
    """A method on both matrices, and what it adds to a forward pass and to a step for each."""

    make: Callable[[], peftjax.PeftTransform]
    forward: Callable[[int, int], float]
    step: Callable[[int, int], float] | None = None
    # A scatter is compiled to a loop, whose body counts once: such a program is counted before.
    scatters: bool = False

    def count(self, function, *args, **keywords):
        if self.scatters:
            return flops(jax.jit(function).lower(*args, **keywords))
        return compiled_flops(function, *args, **keywords)


def _fft(i, o):
    return 8 * i * o * np.log2(i) * np.log2(o)  # as the compiler counts it


COSTS = {
    'lora': Cost(
        lambda: peftjax.lora(rank=8, alpha=16, targets='.*'),
        lambda i, o: 16 * T * (i + o) + 2 * T * o,
    ),
    'lora_fa': Cost(
        lambda: peftjax.lora_fa(rank=8, alpha=16, targets='.*'),
        lambda i, o: 16 * T * (i + o) + 2 * T * o,
        lambda i, o: 4 * 8 * T * (i + o) + 2 * 8 * T * o + 6 * T * o,
    ),
    'dora': Cost(
        lambda: peftjax.dora(rank=8, alpha=16, targets='.*'),
        lambda i, o: (
            16 * T * (i + o) + 3 * T * o + 16 * i * (o + 8) + 2 * 64 * o + 2 * i * o + 6 * 8 * o
        ),
        lambda i, o: (
            3 * (16 * T * (i + o) + 3 * T * o)
            + 16 * i * (o + 8)
            + 2 * 64 * o
            + 2 * i * o
            + 6 * 8 * o
        ),
    ),
    'adalora': Cost(
        lambda: peftjax.adalora(init_rank=8, targets='.*'),
        lambda i, o: 16 * T * (i + o) + T * o + 8 * (o + 1),
    ),
    'vera': Cost(
        lambda: peftjax.vera(rank=16, targets='.*'),
        lambda i, o: 32 * T * (i + o) + T * (16 + 2 * o),
        lambda i, o: 64 * T * (i + o) + 3 * T * (16 + 2 * o),
    ),
    'loha': Cost(
        lambda: peftjax.loha(rank=4, alpha=8, targets='.*'),
        lambda i, o: (16 + 2) * i * o + 2 * T * i * o + T * o,
    ),
    'hira': Cost(
        lambda: peftjax.hira(rank=4, targets='.*'),
        lambda i, o: (8 + 1) * i * o + 2 * T * i * o + T * o,
    ),
    'hra': Cost(
        lambda: peftjax.hra(rank=8, targets='.*'),
        lambda i, o: 32 * T * i + 48 * i,
        lambda i, o: 13 * 8 * T * i,
    ),
    'lokr': Cost(
        lambda: peftjax.lokr(rank=4, factor=8, targets='.*'),
        lambda i, o: 2 * T * i * o // 8 + 2 * T * 8 * o + 2 * T * o + 2 * (i // 8) * 4 * (o // 8),
    ),
    'gralora': Cost(
        lambda: peftjax.gralora(rank=8, alpha=16, targets='.*'),
        lambda i, o: 16 * T * (i + o) + 4 * T * o,
    ),
    'miss': Cost(
        lambda: peftjax.miss(rank=16, targets='.*'),
        lambda i, o: T * i + 32 * T * o + T * o,
    ),
    'c3a': Cost(
        lambda: peftjax.c3a(block_size=16, targets='.*'),
        lambda i, o: T * (18 * i + 18 * i * o / 256 + 36 * o + 3 * i + 5 * o),
        lambda i, o: T * (2 * (21 * i + 41 * o) + 3 * 18 * i * o / 256),
    ),
    'oft': Cost(
        lambda: peftjax.oft(block_size=16, targets='.*'),
        lambda i, o: 32 * T * i + 3 * 16 * i,
        lambda i, o: 96 * T * i + 3 * 16 * i + 4 * 16**2 * i,
    ),
    'oft by a series': Cost(
        lambda: peftjax.oft(block_size=16, neumann_terms=5, targets='.*'),
        lambda i, o: 32 * T * i + 2 * 3 * 16**2 * i,
    ),
    'boft': Cost(
        lambda: peftjax.boft(block_size=16, factors=2, targets='.*'),
        lambda i, o: 64 * T * i + T * o + 2 * 3 * 16 * i,
        lambda i, o: 3 * (64 * T * i + T * o) + 2 * (3 * 16 * i + 4 * 16**2 * i),
    ),
    'randlora': Cost(
        lambda: peftjax.randlora(rank=16, targets='.*'),
        lambda i, o: 2 * T * 128 * (i + o) + 2 * T * o + 2 * 128 * 128,
        lambda i, o: 4 * T * 128 * (i + o) + 2 * T * 128 * 128 + 6 * T * o,
    ),
    'diff_pruning': Cost(
        lambda: peftjax.diff_pruning(targets='.*'),
        lambda i, o: 2 * T * i * o + T * o + 12 * i * o,
    ),
    'select': Cost(
        lambda: peftjax.select('.*'),
        lambda i, o: 0,
        lambda i, o: 2 * T * i * o + T * o,
    ),
    'bottleneck': Cost(
        lambda: peftjax.bottleneck(size=16, targets='.*'),
        lambda i, o: 64 * T * o + T * (32 + 3 * o),
    ),
    'compacter': Cost(
        lambda: peftjax.compacter(size=32, terms=4, activation='relu', targets='.*'),
        lambda i, o: 8 * T * (2 * o + 32 + 64) + T * (64 + 3 * o),
    ),
    'invertible_adapter': Cost(
        lambda: peftjax.chain(
            *(peftjax.invertible_adapter(size=16, targets=name) for name in ('up', 'down'))
        ),
        # The compiler counts putting the halves together as a sum of both, filled up with zeros.
        lambda i, o: 64 * T * o + T * (64 + 4 * o),
    ),
    'loreft': Cost(
        lambda: peftjax.loreft(rank=8, targets='.*'),
        lambda i, o: 48 * T * o + T * (2 * o + 16),
    ),
    'noreft': Cost(
        lambda: peftjax.noreft(rank=8, targets='.*'),
        lambda i, o: 48 * T * o + T * (2 * o + 16),
    ),
    'direft': Cost(
        lambda: peftjax.direft(rank=8, targets='.*'),
        lambda i, o: 32 * T * o + T * (2 * o + 8),
    ),
    'fish_mask': Cost(
        lambda: peftjax.fish_mask({f'{name}/kernel': np.arange(5000) for name in ('up', 'down')}),
        lambda i, o: 5000,
        lambda i, o: 2 * T * i * o + 2 * 5000,
        scatters=True,
    ),
    'ia3': Cost(
        lambda: peftjax.ia3(targets='.*'), lambda i, o: (T + 1) * o, lambda i, o: 6 * T * o
    ),
    'road': Cost(
        lambda: peftjax.road(variant=2, targets='.*'),
        lambda i, o: 3.5 * T * o,
        lambda i, o: 17 * T * o,
    ),
    'delora': Cost(
        lambda: peftjax.delora(rank=8, targets='.*'),
        lambda i, o: 16 * T * (i + o) + T * o + 2 * i * o + 4 * 8 * i + 2 * 8 * o,
    ),
    'vblora': Cost(
        lambda: peftjax.vblora(rank=4, num_vectors=64, vector_length=32, targets='.*'),
        lambda i, o: 8 * T * (i + o) + T * o + 2 * 2 * 4 * (i + o),
    ),
    'psoft': Cost(
        lambda: peftjax.psoft(peftjax.principal_subspaces(matrices(), rank=16, targets='.*')),
        lambda i, o: 32 * T * (i + o) + T * o + 2 * i * 16**2 + 3 * 16**2,
        lambda i, o: 64 * T * (i + o) + 32 * T * i + 3 * T * o + 4 * i * 16**2,
    ),
    'phm adapter': Cost(
        lambda: peftjax.compacter(
            size=32, terms=4, rank=None, shared_rule=False, activation='relu', targets='.*'
        ),
        lambda i, o: 2 * T * 32 * (2 * o + 2 * 16) + T * (64 + 3 * o),
    ),
    'shira': Cost(
        lambda: peftjax.shira(rank=8, targets='.*'),
        lambda i, o: 2 * T * 8 * (i + o) + T * o,
        lambda i, o: 7 * T * 8 * (i + o) + T * o,
        scatters=True,
    ),
    'fourierft': Cost(
        lambda: peftjax.fourierft(n_frequency=100, targets='.*'),
        lambda i, o: 2 * T * i * o + T * o + _fft(i, o),
        lambda i, o: 6 * T * i * o + 3 * T * o + 2 * _fft(i, o),
    ),
    'intrinsic': Cost(
        lambda: peftjax.intrinsic(dimension=1000),
        lambda i, o: (4 * 64 + 110) * (i * o + o),
        lambda i, o: 2 * T * i * o + (8 * 64 + 190) * (i * o + o),
    ),
    'gated': Cost(
        lambda: peftjax.gated(peftjax.lora(rank=8, alpha=16, targets='.*')),
        lambda i, o: 16 * T * (i + o) + 2 * T * o + 2 * T * i + 3 * T * o,
    ),
}
