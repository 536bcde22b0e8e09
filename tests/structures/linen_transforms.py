"""Flax Linen models under scan, remat, jit, vmap, cond and RNN, and with state passing through."""

from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.structures.entry import normal, tokens
from tests.structures.linen_layers import init, linen


class Block(nn.Module):
    """Residual layer: two kernels, one bias."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.tanh(nn.Dense(7, name='up')(x))
        return x + nn.Dense(x.shape[-1], use_bias=False, name='down')(hidden)


class CarryBlock(nn.Module):
    """Block in the form `nn.scan` wants."""

    @nn.compact
    def __call__(self, x, _):
        return Block(name='block')(x), None


def scanned(body: type[nn.Module] = CarryBlock, **options) -> Any:
    rules = {'variable_axes': {'params': 0}, 'split_rngs': {'params': True}, 'length': 3}
    return nn.scan(body, **(rules | options))


@linen('layers/block/{up,down}/kernel', added='layers/block/up/bias')
def scan_layers():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scanned()(name='layers')(x, None)[0]

    return init(Model(), normal(2, 5))


@linen('layers/block/{up,down}/kernel', added='layers/block/up/bias')
def scan_layers_params_axis_1():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            body = scanned(variable_axes={'params': 1})
            return body(name='layers')(x, None)[0]

    return init(Model(), normal(2, 5))


@linen('layers/block/{up,down}/kernel', added='layers/block/up/bias')
def scan_with_shared_params():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            rules = {'variable_broadcast': 'params', 'split_rngs': {'params': False}}
            body = scanned(variable_axes={}, **rules)
            return body(name='layers')(x, None)[0]

    return init(Model(), normal(2, 5))


@linen('outer/inner/block/{up,down}/kernel', added='outer/inner/block/up/bias')
def scan_nested():
    class Group(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return scanned()(name='inner')(x, None)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scanned(Group, length=2)(name='outer')(x, None)[0]

    return init(Model(), normal(2, 5))


@linen('layers/block/{up,down}/kernel', added='layers/block/up/bias')
def scan_of_remat():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            body = scanned(nn.remat(CarryBlock, prevent_cse=False))
            return body(name='layers')(x, None)[0]

    return init(Model(), normal(2, 5))


@linen('layers/block/{up,down}/kernel', added='layers/block/up/bias')
def remat_of_scan():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.remat(scanned())(name='layers')(x, None)[0]

    return init(Model(), normal(2, 5))


@linen('{up,down}/kernel', added='up/bias')
def remat():
    return init(nn.remat(Block)(), normal(2, 5))


@linen('{up,down}/kernel', added='up/bias')
def jit():
    return init(nn.jit(Block)(), normal(2, 5))


@linen('{up,down}/kernel', added='up/bias')
def vmap_experts():
    experts = nn.vmap(Block, variable_axes={'params': 0}, split_rngs={'params': True})
    return init(experts(), normal(3, 2, 5))


@linen('{up,down}/kernel', added='up/bias')
def vmap_experts_last_axis():
    experts = nn.vmap(Block, variable_axes={'params': -1}, split_rngs={'params': True})
    return init(experts(), normal(3, 2, 5))


@linen('{up,down}/kernel', added='up/bias')
def vmap_shared_params():
    shared = nn.vmap(Block, variable_axes={'params': None}, split_rngs={'params': False}, in_axes=1)
    return init(shared(), normal(2, 3, 5))


@linen('layers/experts/{up,down}/kernel layers/router/kernel', added='layers/experts/up/bias')
def scan_of_vmap_experts():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            experts = nn.vmap(
                Block,
                variable_axes={'params': 0},
                split_rngs={'params': True},
                in_axes=None,  # pyright: ignore[reportArgumentType] Flax types the default, 0
                axis_size=3,
            )
            gates = nn.softmax(nn.Dense(3, use_bias=False, name='router')(x))
            return jnp.einsum('be,ebd->bd', gates, experts(name='experts')(x)), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scanned(Layer, length=2)(name='layers')(x, None)[0]

    return init(Model(), normal(4, 5))


@linen('{first,second}/kernel')
def cond_branches():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, flag, x):
            first = nn.Dense(5, use_bias=False, name='first')
            second = nn.Dense(5, use_bias=False, name='second')
            for branch in (first, second):  # both have parameters, whichever runs
                branch(x)
            return nn.cond(flag, lambda m, x: first(x), lambda m, x: second(first(x)), self, x)

    return init(Model(), jnp.array(True), normal(3, 5))


@linen('dense/kernel')
def map_variables_transposed():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            def swap(tree):
                return jax.tree.map(jnp.transpose, tree)

            flipped = nn.map_variables(
                nn.Dense, 'params', swap, swap, mutable=self.is_initializing()
            )
            return flipped(7, use_bias=False, name='dense')(x)

    return init(Model(), normal(3, 5))


@linen(
    'decoder/layers/block/{up,down}/kernel embed/embedding', added='decoder/layers/block/up/bias'
)
def language_model():
    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scanned(nn.remat(CarryBlock, prevent_cse=False))(name='layers')(x, None)[0]

    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(11, 6, name='embed')
            return embed.attend(nn.jit(Decoder)(name='decoder')(embed(ids)))

    return init(Model(), tokens(2, 5, high=11))


@linen(refused={'kernel': 'reshaped in permuted order'})
def vmap_convolutions():
    towers = nn.vmap(nn.Conv, variable_axes={'params': 0}, split_rngs={'params': True})
    return init(towers(4, (3,), use_bias=False), normal(3, 2, 6, 5))


@linen(refused={'embedding': 'several tables at once'})
def vmap_embeddings():
    tables = nn.vmap(nn.Embed, variable_axes={'params': 0}, split_rngs={'params': True})
    return init(tables(11, 6), tokens(3, 4, high=11))


@linen('up/kernel down/kernel', added='up/bias')
def frozen_dict_of_params():
    module, variables, inputs = init(Block(), normal(2, 5))
    return module, flax.core.freeze(variables), inputs


@linen('weights/kernel')
def module_that_returns_its_weight():
    class Weights(nn.Module):
        @nn.compact
        def __call__(self):
            return self.param('kernel', nn.initializers.normal(), (5, 7))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ Weights(name='weights')()

    return init(Model(), normal(3, 5))
