"""One small decoder in every form the contract is checked on."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import peftjax

WIDTH, HIDDEN, HEADS, LAYERS, VOCABULARY = 8, 16, 2, 2, 13
IDS = jnp.arange(40, dtype=jnp.int32).reshape(8, 5) % VOCABULARY
ROLES = peftjax.Roles(token_ids='ids', embedding=r'embed')


class _LinenBlock(nn.Module):
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, _=None):
        attention = nn.MultiHeadDotProductAttention(HEADS, dtype=self.dtype, name='attention')
        with jax.numpy_dtype_promotion('standard'):  # Flax takes a float32 mean from bfloat16.
            normal = nn.LayerNorm(dtype=self.dtype, name='norm')(x)
        x = x + attention(normal)
        hidden = nn.gelu(nn.Dense(HIDDEN, dtype=self.dtype, name='up')(x))
        return x + nn.Dense(WIDTH, dtype=self.dtype, name='down')(hidden), None


class _Linen(nn.Module):
    scan: bool
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(VOCABULARY, WIDTH, dtype=self.dtype, name='embed')
        x = embed(ids)
        block = nn.remat(_LinenBlock) if self.remat else _LinenBlock
        if self.scan:
            stack = nn.scan(
                block,
                variable_axes={'params': 0},
                split_rngs={'params': True},
                length=LAYERS,
            )
            x, _ = stack(self.dtype, name='layers')(x, None)
        else:
            for i in range(LAYERS):
                x, _ = block(self.dtype, name=f'layers_{i}')(x)
        return embed.attend(x)


class _NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class _NnxLooped(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List([_NnxBlock(rngs) for _ in range(LAYERS)])

    def __call__(self, ids):
        x = self.embed(ids)
        for block in self.layers:
            x = block(x)
        return self.embed.attend(x)


class _NnxStacked(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)

        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap
        def make(rngs):
            return _NnxBlock(rngs)

        self.layers = make(rngs)

    def __call__(self, ids):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, block):
            return nnx.remat(lambda block, x: block(x))(block, x)

        return self.embed.attend(forward(self.embed(ids), self.layers))


def _linen(**fields):
    module = _Linen(**fields)
    variables = module.init(jax.random.key(0), IDS)
    return peftjax.wrap(module, variables, {'ids': IDS}, roles=ROLES)


_BUILDERS = {
    'linen looped': lambda: _linen(scan=False),
    'linen scanned': lambda: _linen(scan=True),
    'linen scanned, rematerialised': lambda: _linen(scan=True, remat=True),
    'linen scanned, bfloat16': lambda: _linen(scan=True, dtype=jnp.bfloat16),
    'nnx looped': lambda: peftjax.wrap(_NnxLooped(nnx.Rngs(0)), None, {'ids': IDS}, roles=ROLES),
    'nnx scanned, rematerialised': lambda: peftjax.wrap(
        _NnxStacked(nnx.Rngs(0)), None, {'ids': IDS}, roles=ROLES
    ),
}
# Built when first asked for, and once: no test changes a model.
MODELS = {form: functools.cache(build) for form, build in _BUILDERS.items()}
