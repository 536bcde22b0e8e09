"""Plain functions with a weight whose use cannot be followed or changed, each with its reason."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from tests.structures.entry import normal, promoting, tokens, weights
from tests.structures.function_uses import function


@function('wq', refused={'{wk,wv}': 'concatenate'})
def weights_concatenated():
    def call(params, x):
        kv = x @ jnp.concatenate([params['wk'], params['wv']], axis=1)
        return (x @ params['wq']) * kv[:, :5] + kv[:, 5:]

    return call, weights(wq=(5, 5), wk=(5, 5), wv=(5, 5)), (normal(2, 5),)


@function(refused={'w': 'custom_vjp'})
def custom_vjp():
    @jax.custom_vjp
    def project(x, w):
        return x @ w

    project.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    return lambda params, x: project(x, params['w']), weights(w=(5, 7)), (normal(2, 5),)


@function(refused={'w': 'custom_jvp'})
def custom_jvp():
    @jax.custom_jvp
    def project(x, w):
        return x @ w

    project.defjvps(lambda dx, y, x, w: dx @ w, lambda dw, y, x, w: x @ dw)
    return lambda params, x: project(x, params['w']), weights(w=(5, 7)), (normal(2, 5),)


@function('free', refused={'w': 'shard_map'})
def shard_map():
    mesh = Mesh(jax.devices()[:1], ('d',))
    specs = {'in_specs': (PartitionSpec('d'), PartitionSpec()), 'out_specs': PartitionSpec('d')}
    project = jax.shard_map(jnp.matmul, mesh=mesh, **specs)
    return (
        lambda params, x: project(x, params['w']) @ params['free'],
        weights(w=(5, 7), free=(7, 3)),
        (normal(2, 5),),
    )


@function(refused={'w': 'square'})
def dot_and_penalty():
    def call(params, x):
        return x @ params['w'], jnp.square(params['w']).sum()

    return call, weights(w=(5, 7)), (normal(2, 5),)


@function(refused={'{a,b}': 'another weight in dot_general'})
def dot_of_two_weights():
    return (
        lambda params, x: x @ (params['a'] @ params['b']),
        weights(a=(5, 3), b=(3, 7)),
        (normal(2, 5),),
    )


@function(refused={'w': 'it enters mul'})
def masked_weight():
    mask = jnp.tril(jnp.ones((5, 7)))
    return lambda params, x: x @ (params['w'] * mask), weights(w=(5, 7)), (normal(2, 5),)


@function(refused={'w': 'it enters mul'})
def fake_quantised_weight():
    def call(params, x):
        w = params['w']
        return x @ (w + jax.lax.stop_gradient(jnp.round(w * 8) / 8 - w))

    return call, weights(w=(5, 7)), (normal(2, 5),)


@function('w', refused={'positions': 'sliced', 'idle': 'not used'})
def positions_and_idle():
    @promoting
    def call(params, x):
        return (x + params['positions'][:3]) @ params['w']

    return call, weights(w=(5, 7), positions=(9, 5), idle=(5, 7)), (normal(2, 3, 5),)


@function(scaled='w')
def outer_product():
    return lambda params, x: x[:, None] * params['w'][None, :], weights(w=(7,)), (normal(5),)


@function(refused={'w': 'output of the model'})
def weight_returned():
    return lambda params, x: (x @ params['w'], params['w']), weights(w=(5, 7)), (normal(2, 5),)


@function(refused={'w': 'the carry of a scan'})
def loop_changes_weight():
    def call(params, x):
        def body(i, state):
            return state[0] * 0.9, jnp.tanh(state[1] @ state[0])

        return jax.lax.fori_loop(0, 3, body, (params['w'], x))[1]

    return call, weights(w=(5, 5)), (normal(2, 5),)


@function('w', refused={'half': 'sliced'})
def weight_sliced():
    return (
        lambda params, x: x @ params['w'] @ params['half'][:7],
        weights(w=(5, 7), half=(9, 4)),
        (normal(2, 5),),
    )


@function(refused={'w': 'tanh'})
def weight_squashed():
    return lambda params, x: x @ jnp.tanh(params['w']), weights(w=(5, 7)), (normal(2, 5),)


@function(refused={'w': 'int8'}, vectors='w')
def weight_of_integers():
    def call(params, x):
        return x @ params['w'].astype(jnp.float32)

    return call, {'w': tokens(5, 7, high=9).astype(jnp.int8)}, (normal(2, 5),)


@function(refused={'w': 'different axes'})
def uses_that_disagree():
    def call(params, x):
        first = jnp.einsum('bi,ijk->bjk', x, params['w'])
        return jnp.einsum('bjk,bl,jlm->bm', first, x, params['w'])

    return call, weights(w=(4, 4, 4)), (normal(2, 4),)


@function(refused={'{a,b}': 'another weight in'})
def separate_weights_stacked():
    def call(params, x):
        stack = jnp.stack([params['a'], params['b']])
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    return call, weights(a=(5, 5), b=(5, 5)), (normal(2, 5),)


@function(refused={'w': 'sliced'})
def stack_sliced_before_scan():
    def call(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params['w'][:2])[0]

    return call, weights(w=(3, 5, 5)), (normal(2, 5),)


@function(refused={'w': 'rev'})
def convolution_flipped():
    def call(params, x):
        return jax.lax.conv_transpose(x, params['w'], (2,), 'SAME', transpose_kernel=True)

    return call, weights(w=(3, 7, 5)), (normal(2, 6, 5),)


@function(refused={'w': 'sub'})
def inner_gradient_step():
    def call(params, x):
        def loss(w):
            return jnp.square(x @ w).mean()

        return x @ (params['w'] - 0.1 * jax.grad(loss)(params['w']))

    return call, weights(w=(5, 7)), (normal(2, 5),)


@function(refused={'w': 'pure_callback'})
def host_callback():
    def call(params, x):
        shape = jax.ShapeDtypeStruct((2, 7), jnp.float32)
        return jax.pure_callback(lambda x, w: x @ w, shape, x, params['w'])

    return call, weights(w=(5, 7)), (normal(2, 5),)


@function(refused={'w': 'ragged_dot'})
def ragged_experts():
    def call(params, x):
        return jax.lax.ragged_dot(x, params['w'], jnp.array([2, 0, 4], jnp.int32))

    return call, weights(w=(3, 5, 7)), (normal(6, 5),)


@function(refused={'w': 'stop_gradient'})
def stop_gradient_on_weight():
    return (
        lambda params, x: x @ jax.lax.stop_gradient(params['w']),
        weights(w=(5, 7)),
        (normal(2, 5),),
    )


@function(refused={'w': 'taken apart'})
def stack_regrouped_for_nested_scan():
    def call(params, x):
        def inner(x, w):
            return (jnp.tanh(x @ w), None)

        def outer(x, group):
            return (jax.lax.scan(inner, x, group)[0], None)

        return jax.lax.scan(outer, x, params['w'].reshape(2, 3, 5, 5))[0]

    return call, weights(w=(6, 5, 5)), (normal(2, 5),)
