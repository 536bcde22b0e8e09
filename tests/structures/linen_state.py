"""Flax Linen models with recurrence, mutable collections and random streams."""

import flax.linen as nn
import jax.numpy as jnp

from tests.structures.entry import normal
from tests.structures.linen_layers import KEY, init, linen, variables_of
from tests.structures.linen_transforms import scanned


def stochastic(module, x, **options):
    """As `init`, for a module that draws random numbers in every call."""
    return module, variables_of(module, x), {'x': x, 'rngs': {'dropout': KEY}, **options}


@linen('layers/attention/{query,key,value,out}/kernel')
def scan_attention_with_dropout():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            attend = nn.MultiHeadDotProductAttention(
                2,
                qkv_features=8,
                use_bias=False,
                dropout_rate=0.3,
                deterministic=False,
                name='attention',
            )
            return x + attend(x), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            rngs = {'params': True, 'dropout': True}
            return scanned(Layer, split_rngs=rngs)(name='layers')(x, None)[0]

    return stochastic(Model(), normal(2, 4, 6))


@linen(
    'rnn/cell/{ii,if,ig,io,hi,hf,hg,ho}/kernel',
    added='rnn/cell/{hi,hf,hg,ho}/bias',
)
def rnn_lstm():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            cell = nn.LSTMCell(6, parent=None, name='cell')
            return nn.RNN(cell, name='rnn')(x)

    return init(Model(), normal(2, 4, 5))


@linen('cell/{ir,iz,in,hr,hz,hn}/kernel', added='cell/{ir,iz,in,hn}/bias')
def rnn_gru_reversed():
    return init(nn.RNN(nn.GRUCell(6), reverse=True, keep_order=True), normal(2, 4, 5))


@linen(
    refused={
        '{forward,backward}_rnn/cell/{ii,if,ig,io,hi,hf,hg,ho}/kernel': 'concatenate',
        '{forward,backward}_rnn/cell/{hi,hf,hg,ho}/bias': 'concatenate',
    },
    vectors='{forward,backward}_rnn/cell/{hi,hf,hg,ho}/bias',
)
def rnn_optimized_lstm_bidirectional():
    both = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(6)), nn.RNN(nn.OptimizedLSTMCell(6)))
    return init(both, normal(2, 4, 5))


@linen(
    'conv/kernel head/kernel',
    added='{conv,norm,head}/bias',
    scaled='norm/scale',
)
def batch_norm_and_dropout():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3,), name='conv')(x)
            x = nn.BatchNorm(use_running_average=False, name='norm')(x)
            x = nn.Dropout(0.4, deterministic=False)(x)
            return nn.Dense(3, name='head')(x.mean(1))

    return stochastic(Model(), normal(4, 6, 5), mutable=['batch_stats'])


@linen('layers/dense/kernel', added='layers/norm/bias', scaled='layers/norm/scale')
def scan_with_mutable_state():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = nn.Dense(5, use_bias=False, name='dense')(x)
            x = nn.BatchNorm(use_running_average=False, name='norm')(x)
            return nn.Dropout(0.4, deterministic=False)(x), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {'params': 0, 'batch_stats': 0}
            rngs = {'params': True, 'dropout': True}
            return scanned(Layer, variable_axes=axes, split_rngs=rngs)(name='layers')(x, None)[0]

    return stochastic(Model(), normal(4, 5), mutable=['batch_stats'])


@linen('cell/kernel', reverse=False)
def while_loop():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            cell = nn.Dense(5, use_bias=False, name='cell')
            if self.is_initializing():
                return cell(x)

            def body(module, state):
                return (jnp.tanh(cell(state[0])), state[1] + 1)

            return nn.while_loop(lambda module, state: state[1] < 3, body, self, (x, 0))[0]

    return init(Model(), normal(3, 5))
