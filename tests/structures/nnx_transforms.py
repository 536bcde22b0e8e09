"""Flax NNX models under scan, remat, vmap and RNN, with state passing through, and the bridges."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

from tests.structures.entry import normal, tokens
from tests.structures.linen_layers import init, linen
from tests.structures.nnx_layers import Calls, given, nnx_model, rngs


class Block(nnx.Module):
    """Residual layer: two kernels, one bias."""

    def __init__(self, rngs):
        self.up = nnx.Linear(5, 7, rngs=rngs)
        self.down = nnx.Linear(7, 5, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(x)))


def stacked(length: int, make=Block):
    """`length` modules with their parameters stacked along axis 0."""
    return nnx.split_rngs(splits=length)(nnx.vmap(make))(rngs())


def run_stack(model, x):
    forward = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    return forward(x, model.layers)


@nnx_model('layers/{up,down}/kernel', added='layers/up/bias')
def scan_layers():
    return given(Calls(run_stack, layers=stacked(3)), normal(2, 5))


@nnx_model('layers/{up,down}/kernel', added='layers/up/bias')
def scan_of_remat():
    def call(model, x):
        body = nnx.remat(lambda x, block: block(x))
        return nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, model.layers)

    return given(Calls(call, layers=stacked(3)), normal(2, 5))


@nnx_model('layers/{up,down}/kernel', added='layers/up/bias')
def remat_of_scan():
    def call(model, x):
        return nnx.remat(lambda model, x: run_stack(model, x))(model, x)

    return given(Calls(call, layers=stacked(3)), normal(2, 5))


@nnx_model('layers/{up,down}/kernel', added='layers/up/bias')
def scan_nested():
    def call(model, x):
        def group(x, blocks):
            return nnx.scan(lambda x, b: b(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
                x, blocks
            )

        return nnx.scan(group, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, model.layers)

    make = nnx.split_rngs(splits=2)(nnx.vmap(nnx.split_rngs(splits=3)(nnx.vmap(Block))))
    return given(Calls(call, layers=make(rngs())), normal(2, 5))


@nnx_model('layer/{up,down}/kernel', added='layer/up/bias')
def scan_with_shared_module():
    def call(model, x):
        forward = nnx.scan(
            lambda x, block: block(x), in_axes=(nnx.Carry, None), out_axes=nnx.Carry, length=3
        )
        return forward(x, model.layer)

    return given(Calls(call, layer=Block(rngs())), normal(2, 5))


@nnx_model('block/{up,down}/kernel', added='block/up/bias')
def remat():
    model = Calls(lambda m, x: nnx.remat(lambda b, x: b(x))(m.block, x), block=Block(rngs()))
    return given(model, normal(2, 5))


@nnx_model('block/{up,down}/kernel', added='block/up/bias')
def jit():
    model = Calls(lambda m, x: nnx.jit(lambda b, x: b(x))(m.block, x), block=Block(rngs()))
    return given(model, normal(2, 5))


@nnx_model('experts/{up,down}/kernel', added='experts/up/bias')
def vmap_experts():
    def call(model, x):
        return nnx.vmap(lambda block, x: block(x), in_axes=(0, 0))(model.experts, x)

    return given(Calls(call, experts=stacked(3)), normal(3, 2, 5))


@nnx_model('block/{up,down}/kernel', added='block/up/bias')
def vmap_shared_module():
    def call(model, x):
        return nnx.vmap(lambda block, x: block(x), in_axes=(None, 1))(model.block, x)

    return given(Calls(call, block=Block(rngs())), normal(2, 3, 5))


@nnx_model('cell/{ii,if_,ig,io,hi,hf,hg,ho}/kernel', added='cell/{hi,hf,hg,ho}/bias')
def rnn_lstm():
    return given(nnx.RNN(nnx.LSTMCell(5, 6, rngs=rngs())), normal(2, 4, 5))


@nnx_model('cell/dense_{i,h}/kernel', added='cell/dense_i/bias')
def rnn_gru():
    return given(nnx.RNN(nnx.GRUCell(5, 6, rngs=rngs())), normal(2, 4, 5))


@nnx_model('{first,second}/kernel')
def cond_branches():
    def call(model, flag, x):
        def both(m, x):
            return m.second(m.first(x))

        return nnx.cond(flag, lambda m, x: m.first(x), both, model, x)

    first, second = (nnx.Linear(5, 5, use_bias=False, rngs=rngs()) for _ in range(2))
    return given(Calls(call, first=first, second=second), jnp.array(True), normal(3, 5))


@nnx_model('block/{up,down}/kernel', added='block/up/bias', reverse=False)
def while_loop():
    def call(model, x):
        def body(state):
            module, x, step = state
            return module, module(x), step + 1

        return nnx.while_loop(lambda state: state[2] < 3, body, (model.block, x, 0))[1]

    return given(Calls(call, block=Block(rngs())), normal(2, 5))


@nnx_model('conv/kernel head/kernel', added='{conv,norm,head}/bias', scaled='norm/scale')
def batch_norm_and_dropout():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(5, 4, (3,), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.drop = nnx.Dropout(0.4, rngs=rngs)
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.drop(self.norm(self.conv(x))).mean(1))

    return Model(rngs()), None, {'x': normal(4, 6, 5), 'mutable': True}


@nnx_model('embed/embedding layers/{up,down}/kernel', added='layers/up/bias')
def language_model():
    def call(model, ids):
        return model.embed.attend(run_stack(model, model.embed(ids)))

    model = Calls(call, embed=nnx.Embed(11, 5, rngs=rngs()), layers=stacked(3))
    return given(model, tokens(2, 4, high=11))


@nnx_model('kernel', added='bias')
def bridge_linen_to_nnx():
    inner = nnx.bridge.ToNNX(nn.Dense(7), rngs=rngs())
    return given(inner.lazy_init(normal(3, 5)), normal(3, 5))


@linen('kernel', added='bias')
def bridge_nnx_to_linen():
    return init(nnx.bridge.to_linen(nnx.Linear, 5, 7), normal(3, 5))
