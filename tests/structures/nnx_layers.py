"""Flax NNX layers, each in the smallest model that shows how its parameters are used."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.structures.entry import normal, promoting, structure, tokens


def nnx_model(*args, **columns):
    return structure('nnx', *args, **columns)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(params=7, dropout=3)


def given(module, *inputs):
    """The triple (module, None, inputs): an NNX module holds its own parameters."""
    return module, None, inputs


class Calls(nnx.Module):
    """A module whose call is the function given: keeps the one-off models short."""

    def __init__(self, call, **parts):
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, *inputs):
        return self.call(self, *inputs)


@nnx_model('kernel', added='bias')
def linear():
    return given(nnx.Linear(5, 7, rngs=rngs()), normal(3, 5))


@nnx_model('kernel', added='bias')
def linear_general_axes():
    return given(nnx.LinearGeneral((5, 6), (4, 3), axis=(-3, -1), rngs=rngs()), normal(2, 5, 3, 6))


@nnx_model('kernel', added='bias')
def linear_general_batch_axis():
    layer = nnx.LinearGeneral(6, 7, axis=-1, batch_axis={0: 2}, rngs=rngs())
    return given(layer, normal(2, 5, 6))


@nnx_model('kernel', added='bias')
def einsum():
    return given(nnx.Einsum('abc,cde->abde', (5, 4, 3), (4, 3), rngs=rngs()), normal(2, 6, 5))


@nnx_model('kernel', added='bias')
def conv_1d():
    return given(nnx.Conv(5, 7, (3,), rngs=rngs()), normal(2, 9, 5))


@nnx_model('kernel', added='bias')
def conv_2d_strided_padded_dilated():
    options = {'strides': (2, 1), 'padding': ((1, 0), (2, 1)), 'kernel_dilation': (1, 2)}
    return given(nnx.Conv(5, 7, (3, 2), **options, rngs=rngs()), normal(2, 8, 9, 5))


@nnx_model('kernel')
def conv_grouped():
    layer = nnx.Conv(4, 6, (3,), feature_group_count=2, use_bias=False, rngs=rngs())
    return given(layer, normal(2, 9, 4))


@nnx_model('kernel')
def conv_transpose():
    layer = nnx.ConvTranspose(5, 7, (3,), strides=2, use_bias=False, rngs=rngs())
    return given(layer, normal(2, 6, 5))


@nnx_model('embedding')
def embed():
    return given(nnx.Embed(11, 6, rngs=rngs()), tokens(2, 5, high=11))


@nnx_model('embed/embedding')
def embed_tied_head():
    def call(model, ids):
        return model.embed.attend(jnp.tanh(model.embed(ids)))

    return given(Calls(call, embed=nnx.Embed(11, 6, rngs=rngs())), tokens(2, 5, high=11))


@nnx_model('shared/kernel', added='shared/bias')
def linear_shared():
    def call(model, x):
        return model.shared(jnp.tanh(model.shared(x)))

    return given(Calls(call, shared=nnx.Linear(5, 5, rngs=rngs())), normal(3, 5))


@nnx_model('first/kernel')
def param_shared_between_modules():
    first = nnx.Linear(5, 5, use_bias=False, rngs=rngs())
    second = nnx.Linear(5, 5, use_bias=False, rngs=rngs())
    second.kernel = first.kernel
    return given(
        Calls(lambda m, x: m.second(jnp.tanh(m.first(x))), first=first, second=second), normal(3, 5)
    )


@nnx_model('kernel')
def kernel_transposed():
    model = Calls(lambda m, x: x @ m.kernel[...].T, kernel=nnx.Param(normal(7, 5)))
    return given(model, normal(3, 5))


@nnx_model('kernel', added='bias', tolerance=2e-2)
def kernel_cast_to_bfloat16():
    return given(nnx.Linear(5, 7, dtype=jnp.bfloat16, rngs=rngs()), normal(3, 5))


@nnx_model('{query,key,value,out}/kernel', added='{query,key,value,out}/bias')
def attention_self():
    layer = nnx.MultiHeadAttention(
        num_heads=2, in_features=6, qkv_features=8, decode=False, rngs=rngs()
    )
    return given(layer, normal(2, 4, 6))


@nnx_model('attention/{query,key,value,out}/kernel')
def attention_cross_masked():
    attend = nnx.MultiHeadAttention(2, 6, qkv_features=8, use_bias=False, decode=False, rngs=rngs())
    mask = tokens(2, 1, 3, 5, high=2).astype(bool).at[..., 0].set(True)

    def call(model, x, memory, mask):
        return model.attention(x, memory, mask=mask)

    return given(Calls(call, attention=attend), normal(2, 3, 6), normal(2, 5, 6, seed=1), mask)


@nnx_model('{query,key,value,out}/kernel')
def attention_decode_cache():
    attend = nnx.MultiHeadAttention(2, 6, qkv_features=8, use_bias=False, decode=True, rngs=rngs())
    attend.init_cache((2, 5, 6))
    return attend, None, {'inputs_q': normal(2, 1, 6), 'mutable': True}


@nnx_model('weight')
def einsum_permuted_output():
    def call(model, x):
        return jnp.einsum('nih,bti->hbnt', model.weight[...], x)

    return given(Calls(call, weight=nnx.Param(normal(3, 6, 4))), normal(2, 5, 6))


@nnx_model('qkv/kernel')
def fused_qkv_split_after():
    def call(model, x):
        query, key, value = (part[:, :, None] for part in jnp.split(model.qkv(x), 3, axis=-1))
        return jax.nn.dot_product_attention(query, key, value)

    model = Calls(call, qkv=nnx.Linear(6, 12, use_bias=False, rngs=rngs()))
    return given(model, normal(2, 3, 6))


@nnx_model(refused={'qkv': 'split'})
def fused_qkv_split_before():
    def call(model, x):
        query, key, value = (x @ part for part in jnp.split(model.qkv[...], 3, axis=1))
        return query * jax.nn.softmax(key) + value

    return given(Calls(call, qkv=nnx.Param(normal(6, 12))), normal(3, 6))


@nnx_model(refused={'{weight,scale}': 'another weight in mul'}, vectors='scale')
def weight_norm():
    @promoting
    def call(model, x):
        weight = model.weight[...]
        return x @ (model.scale[...] * weight / jnp.linalg.norm(weight, axis=0))

    model = Calls(call, weight=nnx.Param(normal(5, 7)), scale=nnx.Param(normal(7)))
    return given(model, normal(3, 5))


@nnx_model('layers/{0,2}/kernel', added='layers/{0,2}/bias')
def sequential():
    model = nnx.Sequential(nnx.Linear(5, 7, rngs=rngs()), nnx.relu, nnx.Linear(7, 4, rngs=rngs()))
    return given(model, normal(3, 5))


@nnx_model('blocks/{0,1}/kernel')
def module_list():
    def call(model, x):
        for block in model.blocks:
            x = jnp.tanh(block(x))
        return x

    blocks = nnx.List([nnx.Linear(5, 5, use_bias=False, rngs=rngs()) for _ in range(2)])
    return given(Calls(call, blocks=blocks), normal(3, 5))


@nnx_model('used/kernel', refused={'idle/kernel': 'not used'})
def unused_module():
    idle, used = (nnx.Linear(5, 7, use_bias=False, rngs=rngs()) for _ in range(2))
    return given(Calls(lambda m, x: m.used(x), idle=idle, used=used), normal(3, 5))


@nnx_model('kernel')
def kernel_with_partitioning():
    kernel_init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, 'model'))
    mesh = jax.make_mesh((1,), ('model',), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        layer = nnx.Linear(5, 7, use_bias=False, kernel_init=kernel_init, rngs=rngs())
    return given(layer, normal(3, 5))


@nnx_model('layer/{kernel,lora/lora_a,lora/lora_b}')
def module_with_lora_of_its_own():
    layer = nnx.LoRALinear(5, 7, lora_rank=2, use_bias=False, rngs=rngs())
    return given(Calls(lambda m, x: m.layer(x), layer=layer), normal(3, 5))
