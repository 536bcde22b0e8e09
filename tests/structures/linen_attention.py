"""Flax Linen attention, fused projections and layers that call `jnp.einsum` themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.structures.entry import normal, tokens
from tests.structures.linen_layers import init, linen, variables_of


@linen('{query,key,value,out}/kernel', added='{query,key,value,out}/bias')
def attention_self():
    return init(nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8), normal(2, 4, 6))


@linen('attention/{query,key,value,out}/kernel')
def attention_cross_masked():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, memory, mask):
            attend = nn.MultiHeadDotProductAttention(
                2, qkv_features=8, use_bias=False, name='attention'
            )
            return attend(x, memory, mask=mask)

    mask = tokens(2, 1, 3, 5, high=2).astype(bool).at[..., 0].set(True)
    return init(Model(), normal(2, 3, 6), normal(2, 5, 6, seed=1), mask)


@linen('{query,key,value,out}/kernel')
def attention_decode_cache():
    attend = nn.MultiHeadDotProductAttention(2, qkv_features=8, use_bias=False, decode=True)
    variables = variables_of(attend, normal(2, 5, 6))
    return attend, variables, {'inputs_q': normal(2, 1, 6), 'mutable': ['cache']}


@linen('{query,kv,out}')
def attention_grouped_query():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            init_weight = nn.initializers.lecun_normal()
            query = jnp.einsum('btd,dnh->btnh', x, self.param('query', init_weight, (6, 4, 4)))
            kv = jnp.einsum('btd,dckh->cbtkh', x, self.param('kv', init_weight, (6, 2, 2, 4)))
            core = jax.nn.dot_product_attention(query, kv[0], kv[1], is_causal=True)
            return jnp.einsum('btnh,nhd->btd', core, self.param('out', init_weight, (4, 4, 6)))

    return init(Model(), normal(2, 3, 6))


@linen('weight')
def einsum_permuted_output():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            weight = self.param('weight', nn.initializers.normal(1), (3, 6, 4))
            return jnp.einsum('nih,bti->hbnt', weight, x)

    return init(Model(), normal(2, 5, 6))


@linen('weight')
def einsum_experts():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            weight = self.param('weight', nn.initializers.normal(1), (3, 4, 6))
            return jnp.einsum('ebd,edf->ebf', x, weight)

    return init(Model(), normal(3, 5, 4))


@linen('qkv/kernel')
def fused_qkv_split_after():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            query, key, value = jnp.split(nn.Dense(12, use_bias=False, name='qkv')(x), 3, axis=-1)
            return jax.nn.dot_product_attention(
                query[:, :, None], key[:, :, None], value[:, :, None]
            )

    return init(Model(), normal(2, 3, 6))


@linen(refused={'qkv': 'split'})
def fused_qkv_split_before():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param('qkv', nn.initializers.lecun_normal(), (6, 12))
            query, key, value = (x @ part for part in jnp.split(kernel, 3, axis=1))
            return query * jax.nn.softmax(key) + value

    return init(Model(), normal(3, 6))
