"""The LoRA step of a small Llama in bfloat16, compiled for devices that are not here."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import peftjax
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.plan import mesh_for
from peftjax.train import init_state, make_train_step
from tests.compiled import text

# No two of these are equal, nor one of them 256, so that an array tells what it is by its shape.
LAYERS, WIDTH, INNER, KEYS, VOCABULARY, ROWS, TOKENS = 3, 640, 1792, 128, 3968, 8, 1024
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=WIDTH // 64,
    num_key_value_heads=KEYS // 64,
    head_dim=64,
)
MATRICES = {(WIDTH, WIDTH), (WIDTH, KEYS), (WIDTH, INNER)}
"""Of a layer's base, the sides in any order."""


def devices_of(topology: str) -> Mesh:
    """The mesh of all devices of a topology, on the axis `fsdp`."""
    mesh = mesh_for(topology)
    assert isinstance(mesh, Mesh)
    return mesh


@functools.cache
def compiled_step(topology: str, quantize: str | None = None) -> str:
    """The text of the optimised program; all devices of the topology share the base (`fsdp`)."""
    mesh = devices_of(topology)
    model, transform = llama(quantize), peftjax.lora(rank=8, targets=r'layers.*/(q|v)_proj')
    optimizer, key = optax.adamw(1e-4), jax.random.key(0)
    predict = peftjax.adapt(model, transform)

    def loss(adapter: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:
        return predict(adapter, frozen, **batch, adapter_key=key).losses.mean(), {}

    def start(params: Any) -> Any:
        adapter, frozen = transform.init(key, model.replace(params=params))
        return init_state(adapter, optimizer, key), frozen

    state, frozen = jax.eval_shape(start, model.params)
    ids = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
    where = peftjax.state_shardings(state, model, mesh)
    arguments = (
        _placed(state, where),
        _placed(frozen, peftjax.frozen_shardings(frozen, model, mesh)),
        _placed({'input_ids': ids, 'targets': ids}, peftjax.batch_sharding(mesh)),
    )
    step = make_train_step(loss, optimizer)
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(where, None))
        lowered = jitted.lower(*arguments)
    # The TPU's compiler else searches for faster code for a minute. What is tested stays the same.
    options: Any = {'exec_time_optimization_effort': -1.0} if topology.startswith('v5e') else None
    return text(lowered.compile(compiler_options=options))


def llama(quantize: str | None) -> peftjax.Model:
    """The model without its weights; `quantize` names a scheme."""
    module = Llama(CONFIG, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, remat='full')
    ids = {'input_ids': jax.ShapeDtypeStruct((2, 8), jnp.int32)}
    params = jax.eval_shape(module.init, jax.random.key(0), **ids)['params']
    model = peftjax.wrap(module, params, ids, config=CONFIG)
    return model if quantize is None else peftjax.quantize(model, quantize)


def _placed(tree: Any, where: Any) -> Any:
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        where,
    )
