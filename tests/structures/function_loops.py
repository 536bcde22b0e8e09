"""Plain functions that use their weights inside loops and branches."""

import jax
import jax.numpy as jnp

from tests.structures.entry import normal, tokens, weights
from tests.structures.function_uses import function


@function('layers/{up,down}')
def lax_scan():
    def call(params, x):
        def body(x, layer):
            return x + jnp.tanh(x @ layer['up']) @ layer['down'], None

        return jax.lax.scan(body, x, params['layers'])[0]

    return call, {'layers': weights(up=(3, 5, 7), down=(3, 7, 5))}, (normal(2, 5),)


@function('layers/{up,down}')
def lax_scan_unrolled_reversed():
    def call(params, x):
        def body(x, layer):
            return x + jnp.tanh(x @ layer['up']) @ layer['down'], x.sum()

        return jax.lax.scan(body, x, params['layers'], reverse=True, unroll=2)

    return call, {'layers': weights(up=(3, 5, 7), down=(3, 7, 5))}, (normal(2, 5),)


@function('w')
def lax_scan_weight_in_carry():
    def call(params, x):
        def body(carry, _):
            w, x = carry
            return (w, jnp.tanh(x @ w)), None

        return jax.lax.scan(body, (params['w'], x), length=3)[0][1]

    return call, weights(w=(5, 5)), (normal(2, 5),)


@function('w')
def lax_map():
    return (
        lambda params, x: jax.lax.map(lambda row: row @ params['w'], x),
        weights(w=(5, 7)),
        (normal(3, 2, 5),),
    )


@function('w')
def python_loop_over_stack():
    def call(params, x):
        for i in range(3):
            x = jnp.tanh(x @ params['w'][i])
        return x

    return call, weights(w=(3, 5, 5)), (normal(2, 5),)


@function('w')
def fori_loop_dynamic_index():
    def call(params, x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ params['w'][i]), x)

    return call, weights(w=(3, 5, 5)), (normal(2, 5),)


@function('w')
def fori_loop_dynamic_slice():
    def call(params, x):
        def body(i, x):
            return jnp.tanh(x @ jax.lax.dynamic_index_in_dim(params['w'], i, keepdims=False))

        return jax.lax.fori_loop(0, 3, body, x)

    return call, weights(w=(3, 5, 5)), (normal(2, 5),)


@function('w', reverse=False)
def while_loop_weight_closed_over():
    def call(params, x):
        def body(state):
            return jnp.tanh(state[0] @ params['w']), state[1] + 1

        return jax.lax.while_loop(lambda state: state[1] < 3, body, (x, 0))[0]

    return call, weights(w=(5, 5)), (normal(2, 5),)


@function('w', reverse=False)
def while_loop_weight_in_carry():
    def call(params, x):
        def body(state):
            w, x, i = state
            return w, jnp.tanh(x @ w), i + 1

        return jax.lax.while_loop(lambda state: state[2] < 3, body, (params['w'], x, 0))[1]

    return call, weights(w=(5, 5)), (normal(2, 5),)


@function('{table,w}', reverse=False)
def while_loop_greedy_decoding():
    def call(params, ids):
        def body(state):
            ids, scores, i = state
            logits = jnp.tanh(params['table'][ids[:, i]] @ params['w']) @ params['table'].T
            return ids.at[:, i + 1].set(logits.argmax(-1)), scores + logits, i + 1

        start = (ids, jnp.zeros((2, 11)), 0)
        return jax.lax.while_loop(lambda state: state[2] < 4, body, start)[:2]

    return call, weights(table=(11, 6), w=(6, 6)), (tokens(2, 5, high=11),)


@function('w', reverse=False)
def while_loop_weight_in_condition():
    def call(params, x):
        def go_on(state):
            return (jnp.square(state[0] @ params['w']).sum() < 500.0) & (state[1] < 9)

        return jax.lax.while_loop(go_on, lambda state: (state[0] * 1.5, state[1] + 1), (x, 0))

    return call, weights(w=(5, 5)), (normal(2, 5),)


@function('{one,both}')
def cond():
    def call(params, flag, x):
        def yes(x):
            return jnp.tanh(x @ params['both']) @ params['one']

        return jax.lax.cond(flag, yes, lambda x: x @ params['both'], x)

    return call, weights(both=(5, 5), one=(5, 5)), (jnp.array(True), normal(2, 5))


@function('{a,b,c}')
def switch():
    def call(params, index, x):
        branches = [lambda x, name=name: x @ params[name] for name in 'abc']
        return jax.lax.switch(index, branches, x) @ params['a']

    return call, weights(a=(5, 5), b=(5, 5), c=(5, 5)), (jnp.array(1), normal(2, 5))


@function('{a,b}')
def cond_chooses_operand():
    def call(params, flag, x):
        return (
            jax.lax.cond(flag, lambda w, v: (x @ w, v), lambda w, v: (x @ w.T, v), params['a'], x)[
                0
            ]
            @ params['b']
        )

    return call, weights(a=(5, 5), b=(5, 7)), (jnp.array(False), normal(2, 5))


@function('w')
def checkpoint_inside_scan():
    def call(params, x):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return jax.lax.scan(body, x, params['w'])[0]

    return call, weights(w=(3, 5, 5)), (normal(2, 5),)


@function('layers/{up,down}')
def cond_inside_scan():
    def call(params, flags, x):
        def body(x, inputs):
            flag, layer = inputs

            def update(x):
                return x + jnp.tanh(x @ layer['up']) @ layer['down']

            return jax.lax.cond(flag, update, jnp.sin, x), None

        return jax.lax.scan(body, x, (flags, params['layers']))[0]

    params = {'layers': weights(up=(3, 5, 7), down=(3, 7, 5))}
    return call, params, (jnp.array([True, False, True]), normal(2, 5))


@function('w')
def stack_taken_by_traced_index():
    return (
        lambda params, i, x: x @ jnp.take(params['w'], i, axis=0) @ params['w'][-1],
        weights(w=(3, 5, 5)),
        (jnp.array(1), normal(2, 5)),
    )


@function('w')
def scan_over_layers_that_returns_them():
    def call(params, x):
        (x, total), again = jax.lax.scan(
            lambda state, w: ((jnp.tanh(state[0] @ w), state[1] + 1), w), (x, 0), params['w']
        )
        return x @ again[0] + total

    return call, weights(w=(3, 5, 5)), (normal(2, 5),)


@function('w')
def checkpoint_that_returns_its_weight():
    def call(params, x):
        x, again = jax.checkpoint(lambda w, x: (jnp.tanh(x @ w), w))(params['w'], x)
        return x @ again

    return call, weights(w=(5, 5)), (normal(2, 5),)


@function('w')
def time_scan_inside_layer_scan():
    def call(params, x):
        def layer(x, w):
            def step(h, row):
                h = jnp.tanh(row + h @ w)
                return h, h

            return jax.lax.scan(step, jnp.zeros((2, 5)), x)[1], None

        return jax.lax.scan(layer, x, params['w'])[0]

    return call, weights(w=(3, 5, 5)), (normal(4, 2, 5),)
