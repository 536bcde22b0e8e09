"""Plain functions of a pytree of parameters: the products, lookups and views that are followed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tests.structures.entry import normal, promoting, structure, tokens, weights


def function(*args, **columns):
    return structure('function', *args, **columns)


@function('a/weight b/{0,1}/{0,1}', added='b/1/2')
def nested_pytree():
    @promoting
    def call(params, x):
        x = jnp.tanh(x @ params['a']['weight'])
        for layer in params['b']:
            x = jnp.tanh(x @ layer[0]) @ layer[1]
        return x + params['b'][1][2]

    layers = [list(weights(i, up=(5, 7), down=(7, 5)).values()) for i in (0, 9)]
    params = {'a': weights(weight=(6, 5)), 'b': [tuple(layers[0]), (*layers[1], normal(5))]}
    return call, params, (normal(3, 6),)


@function('w')
def keyword_inputs():
    def call(params, *, x, flip):
        return jnp.tanh(x) @ params['w'] if flip else x @ params['w']

    return call, weights(w=(5, 7)), {'x': normal(3, 5), 'flip': True}


@function('w')
def weight_on_the_left():
    return lambda params, x: params['w'] @ x, weights(w=(7, 5)), (normal(5, 3),)


@function('w')
def swapaxes_and_flatten():
    def call(params, x):
        return x @ params['w'].swapaxes(0, 1).reshape(6, 20)

    return call, weights(w=(3, 2, 4, 5)), (normal(3, 6),)


@function('w')
def squeezed_and_expanded():
    def call(params, x):
        return jnp.einsum('bi,oi->bo', x, jnp.squeeze(params['w'][:, None], 2)[:, 0])

    return call, weights(w=(7, 1, 5)), (normal(3, 5),)


@function('w')
def contraction_of_two_axes():
    return (
        lambda params, x: jnp.einsum('hbn,nho->bo', x, params['w']),
        weights(w=(4, 3, 7)),
        (normal(3, 2, 4),),
    )


@function('w')
def transposed_in_one_use_only():
    def call(params, x):
        return jnp.tanh(x @ params['w']) @ params['w'].T

    return call, weights(w=(5, 7)), (normal(3, 5),)


@function('{a,b}')
def low_rank_product_on_activations():
    return (
        lambda params, x: (x @ params['a']) @ params['b'],
        weights(a=(5, 3), b=(3, 7)),
        (normal(2, 5),),
    )


@function('w')
def gradient_inside_the_model():
    def call(params, x):
        return jax.grad(lambda x: jnp.tanh(x @ params['w']).sum())(x)

    return call, weights(w=(5, 7)), (normal(3, 5),)


@function('table')
def lookup_with_take():
    return (
        lambda params, ids: jnp.take(params['table'], ids, axis=0),
        weights(table=(11, 6)),
        (tokens(2, 4, high=11),),
    )


@function('table')
def lookup_and_one_hot():
    def call(params, ids):
        return params['table'][ids] + jax.nn.one_hot(ids, 11) @ params['table']

    return call, weights(table=(11, 6)), (tokens(2, 4, high=11),)


@function('conv', scaled='depth')
def convolution_and_depth_scale():
    @promoting
    def call(params, x):
        return (
            jax.lax.conv_general_dilated(x, params['conv'], (1,), 'VALID')
            * params['depth'][:, None]
        )

    return call, weights(conv=(7, 5, 3), depth=(7,)), (normal(2, 5, 9),)


@function('w')
def vmap_over_inputs():
    def call(params, x):
        return jax.vmap(lambda row: jnp.tanh(params['w'].T @ row))(x)

    return call, weights(w=(5, 7)), (normal(3, 5),)


@function('{up,down}')
def vmap_over_weights():
    def call(params, x):
        return jax.vmap(lambda p, x: jnp.tanh(x @ p['up']) @ p['down'], in_axes=(0, None))(
            params, x
        )

    return call, weights(up=(3, 5, 7), down=(3, 7, 5)), (normal(2, 5),)


@function('w')
def vectorize():
    @functools.partial(jnp.vectorize, signature='(i),(i,o)->(o)')
    def project(x, w):
        return jnp.tanh(x @ w)

    call = promoting(lambda params, x: project(x, params['w']))
    return call, weights(w=(5, 7)), (normal(2, 3, 5),)


@function('{up,down}')
def checkpoint():
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    def call(params, x):
        return jnp.tanh(x @ params['up']) @ params['down']

    return call, weights(up=(5, 7), down=(7, 5)), (normal(2, 5),)


@function('w')
def jit_nested():
    project = jax.jit(lambda w, x: jax.jit(jnp.matmul)(x, jnp.asarray(w).T))
    return lambda params, x: project(params['w'], x), weights(w=(7, 5)), (normal(2, 5),)


@function('w')
def routed_experts():
    def call(params, x):
        choice = jax.nn.one_hot(jnp.argmax(x[:, :3], axis=-1), 3)
        return jnp.einsum('bed,edf,be->bf', x[:, None].repeat(3, 1), params['w'], choice)

    return call, weights(w=(3, 5, 7)), (normal(4, 5),)


@function('table')
def lookup_of_columns():
    return (
        lambda params, ids: params['table'][:, ids],
        weights(table=(6, 11)),
        (tokens(4, high=11),),
    )


@function('table')
def head_before_lookup():
    def call(params, x):
        logits = x @ params['table'].T
        return params['table'][logits.argmax(-1)] + x, logits

    return call, weights(table=(11, 6)), (normal(3, 6),)


@function('w')
def complex_weight():
    @promoting
    def call(params, x):
        return jnp.fft.irfft(
            jnp.einsum('bfi,fio->bfo', jnp.fft.rfft(x, axis=1), params['w']), axis=1
        )

    w = weights(real=(4, 5, 7), imag=(4, 5, 7))
    return call, {'w': jax.lax.complex(w['real'], w['imag'])}, (normal(2, 6, 5),)


@function('w', tolerance=2e-2)
def mixed_precision_accumulation():
    def call(params, x):
        x, w = x.astype(jnp.bfloat16), params['w'].astype(jnp.bfloat16)
        return jnp.matmul(x, w, preferred_element_type=jnp.float32)

    return call, weights(w=(5, 7)), (normal(3, 5),)


@function('w')
def sharding_constraint():
    mesh = jax.make_mesh((1,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, 'd'))

    def call(params, x):
        return x @ jax.lax.with_sharding_constraint(params['w'], sharding)

    return call, weights(w=(5, 7)), (normal(3, 5),)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A node of parameters that is a class of the user's own."""

    weight: jax.Array
    bias: jax.Array


@function('{first,second}/weight', added='{first,second}/bias')
def dataclass_parameters():
    @promoting
    def call(params, x):
        for name in ('first', 'second'):
            x = jnp.tanh(x @ params[name].weight + params[name].bias)
        return x

    params = {
        name: Layer(**weights(i, weight=(5, 5), bias=(5,)))
        for i, name in enumerate(('first', 'second'))
    }
    return call, params, (normal(3, 5),)


@function('w')
def platform_dependent():
    def call(params, x):
        return jax.lax.platform_dependent(
            x, params['w'], cpu=lambda x, w: x @ w, default=lambda x, w: jnp.dot(x, w)
        )

    return call, weights(w=(5, 7)), (normal(3, 5),)


@function('w')
def expert_chosen_by_index():
    def call(params, x):
        chosen = params['w'][jnp.argmax(x[:, :3], axis=-1)]
        return jnp.einsum('bd,bdf->bf', x, chosen)

    return call, weights(w=(3, 5, 7)), (normal(4, 5),)


@function('w')
def operand_of_booleans():
    call = promoting(lambda params, x: jnp.dot(x > 0, params['w']))
    return call, weights(w=(5, 7)), (normal(3, 5),)


@function('table')
def lookup_of_one_symbol():
    return (
        lambda params, ids: params['table'][ids],
        weights(table=(11, 4, 6)),
        (tokens(1, 1, high=11),),
    )


@function('w')
def expert_chosen_for_one_example():
    def call(params, index, x):
        return jnp.einsum('bd,bdf->bf', x, params['w'][index])

    return call, weights(w=(3, 5, 7)), (jnp.array([1]), normal(1, 5))


@function('table')
def vmap_of_scalar_lookup():
    def call(params, ids):
        return jax.vmap(jax.vmap(lambda i: params['table'][i]))(ids)

    return call, weights(table=(11, 6)), (tokens(2, 3, high=11),)
