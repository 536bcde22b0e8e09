"""Flax Linen layers, each in the smallest model that shows how its parameters are used."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.structures.entry import normal, normal_like, structure, tokens

KEY = jax.random.key(7)


def linen(*args, **columns):
    return structure('linen', *args, **columns)


def variables_of(module, *inputs):
    """Normal parameters, and zeros in every other collection."""
    variables = jax.eval_shape(module.init, {'params': KEY, 'dropout': KEY}, *inputs)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    return {**zeros, 'params': normal_like(variables['params'])}


def init(module, *inputs):
    """The triple (module, variables, inputs)."""
    return module, variables_of(module, *inputs), inputs


@linen('kernel', added='bias')
def dense():
    return init(nn.Dense(7), normal(3, 5))


@linen('kernel', added='bias')
def dense_general_axes():
    return init(nn.DenseGeneral((4, 3), axis=(-3, -1)), normal(2, 5, 3, 6))


@linen('kernel', added='bias')
def dense_general_batch_dims():
    return init(nn.DenseGeneral(7, axis=-1, batch_dims=(0,)), normal(2, 5, 6))


@linen('kernel', added='bias')
def einsum():
    return init(nn.Einsum((5, 4, 3), 'abc,cde->abde'), normal(2, 6, 5))


@linen('kernel', added='bias')
def conv_1d():
    return init(nn.Conv(7, kernel_size=(3,)), normal(2, 9, 5))


@linen('kernel', added='bias')
def conv_2d_strided_padded_dilated():
    conv = nn.Conv(7, (3, 2), strides=(2, 1), padding=((1, 0), (2, 1)), kernel_dilation=(1, 2))
    return init(conv, normal(2, 8, 9, 5))


@linen('kernel')
def conv_circular():
    return init(nn.Conv(7, (3,), padding='CIRCULAR', use_bias=False), normal(2, 9, 5))


@linen('kernel')
def conv_grouped():
    return init(nn.Conv(6, (3,), feature_group_count=2, use_bias=False), normal(2, 9, 4))


@linen('kernel')
def conv_depthwise():
    return init(nn.Conv(5, (3, 3), feature_group_count=5, use_bias=False), normal(2, 6, 6, 5))


@linen('kernel')
def conv_transpose():
    return init(nn.ConvTranspose(7, (3,), strides=(2,), use_bias=False), normal(2, 6, 5))


@linen('kernel')
def conv_local():
    return init(nn.ConvLocal(7, (3,), use_bias=False), normal(2, 6, 5))


@linen('embedding')
def embed():
    return init(nn.Embed(11, 6), tokens(2, 5, high=11))


@linen('embed/embedding hidden/kernel', added='hidden/bias')
def embed_tied_head():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(11, 6, name='embed')
            return embed.attend(jnp.tanh(nn.Dense(6, name='hidden')(embed(ids))))

    return init(Model(), tokens(2, 5, high=11))


@linen('shared/kernel', added='shared/bias')
def dense_shared():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = nn.Dense(5, name='shared')
            return shared(jnp.tanh(shared(x)))

    return init(Model(), normal(3, 5))


@linen('Dense_0/kernel')
def dense_shared_between_modules():
    class Sender(nn.Module):
        shared: nn.Module

        def __call__(self, x):
            return jnp.tanh(self.shared(x))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = nn.Dense(5, use_bias=False)
            return Sender(shared)(x) + Sender(shared)(2 * x)

    return init(Model(), normal(3, 5))


@linen('kernel')
def kernel_transposed():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param('kernel', nn.initializers.lecun_normal(), (7, 5)).T

    return init(Model(), normal(3, 5))


@linen('kernel')
def kernel_reshaped():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param('kernel', nn.initializers.normal(), (2, 3, 4, 5))
            return x @ kernel.reshape(6, 20)

    return init(Model(), normal(3, 6))


@linen('kernel', added='bias', tolerance=2e-2)
def kernel_cast_to_bfloat16():
    return init(nn.Dense(7, dtype=jnp.bfloat16), normal(3, 5))


@linen('kernel', added='bias', tolerance=2e-2)
def kernel_stored_in_bfloat16():
    return init(nn.Dense(7, param_dtype=jnp.bfloat16), normal(3, 5).astype(jnp.bfloat16))


@linen(
    refused={'layer/kernel': 'another weight in mul'},
    added='layer/bias',
    scaled='normal/layer/kernel/scale',
)
def weight_norm():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.WeightNorm(nn.Dense(7, name='layer'), name='normal')(x)

    return init(Model(), normal(3, 5))


@linen(
    '{first,second}/kernel',
    added='{first,second,norm_a,norm_c}/bias',
    scaled='{norm_a,norm_b,norm_c}/scale slope/negative_slope',
)
def normalisations():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm(name='norm_a')(nn.Dense(6, name='first')(x))
            x = nn.RMSNorm(name='norm_b')(nn.PReLU(name='slope')(x))
            return nn.GroupNorm(2, name='norm_c')(nn.Dense(8, name='second')(x))

    return init(Model(), normal(3, 5))


@linen('weight')
def bilinear():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            weight = self.param('weight', nn.initializers.normal(1), (4, 5, 6))
            return jnp.einsum('bi,ijk,bj->bk', x, weight, y)

    return init(Model(), normal(3, 4), normal(3, 5, seed=1))


@linen('layers_{0,2}/kernel', added='layers_{0,2}/bias')
def sequential():
    return init(nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(4)]), normal(3, 5))


@linen('blocks_{0,1}/kernel head/kernel', added='blocks_{0,1}/bias head/bias')
def setup_list():
    class Model(nn.Module):
        def setup(self):
            self.blocks = [nn.Dense(5) for _ in range(2)]
            self.head = nn.Dense(3)

        def __call__(self, x):
            for block in self.blocks:
                x = jnp.tanh(block(x))
            return self.head(x)

    return init(Model(), normal(3, 5))


@linen('used/kernel', refused={'idle/kernel': 'not used'})
def unused_module():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            if self.is_initializing():
                nn.Dense(7, use_bias=False, name='idle')(x)
            return nn.Dense(7, use_bias=False, name='used')(x)

    return init(Model(), normal(3, 5))


@linen('kernel')
def kernel_with_partitioning():
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'model'))
    return init(nn.Dense(7, use_bias=False, kernel_init=kernel_init), normal(3, 5))
