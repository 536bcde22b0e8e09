"""Memory of a LLaMA-7B step on a TPU slice, by the TPU compiler, without a TPU.

    pip install 'libtpu==0.0.42.*'
    python -m benchmarks.tpu_memory lora    # or full

The step is compiled ahead of time for the topology v5e:2x4, eight chips over which the base is
split (`fsdp=8`): bf16, scanned layers, full rematerialisation, batch 8 x 2048. It prints what the
compiler says each chip holds.
"""

import os
import sys

os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost'}
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies

import peftjax
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.training import init_state, make_train_step

TOPOLOGY, BATCH, LENGTH = 'v5e:2x4', 8, 2048
CONFIG = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
)
METHODS = {
    'lora': peftjax.lora(rank=8, targets=r'layers/self_attn/(q|v)_proj'),
    'full': peftjax.full(),
}


def main() -> None:
    if sys.argv[1:] not in [[name] for name in METHODS]:
        sys.exit(f'name one of {", ".join(METHODS)}')
    transform, optimizer = METHODS[sys.argv[1]], optax.adamw(1e-4)
    topology = topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGY)
    mesh = peftjax.make_mesh(fsdp=len(topology.devices), devices=topology.devices)
    module = Llama(CONFIG, remat='full', dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), input_ids=ids)['params']
    model = peftjax.wrap(module, params, {'input_ids': ids}, config=CONFIG)
    predict = peftjax.adapt(model, transform)

    def loss(adapter, params, batch, key):
        del key
        logits = predict(adapter, params, input_ids=batch)[:, :-1].astype(jnp.float32)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return each.mean(), {}

    def start(key, params):
        return init_state(transform.init(key, model.replace(params=params)), optimizer, key)

    def placed(tree, where):
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            where,
        )

    state = jax.eval_shape(start, jax.random.key(0), params)
    where = peftjax.state_shardings(state, model, mesh)
    step = jax.jit(make_train_step(loss, optimizer), donate_argnums=0, out_shardings=(where, None))
    with jax.set_mesh(mesh):
        compiled = step.lower(
            placed(state, where),
            placed(params, peftjax.shardings(model, mesh)),
            placed(ids, peftjax.batch_sharding(mesh)),
        ).compile()
    memory = compiled.memory_analysis()
    for name in ('argument_size', 'temp_size', 'peak_memory'):
        print(f'{name}: {getattr(memory, f"{name}_in_bytes") / 2**30:.2f} GiB a chip')


if __name__ == '__main__':
    main()
