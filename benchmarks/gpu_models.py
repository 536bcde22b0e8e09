"""Llamas of the GPU benchmark: their shapes, and random weights made on the device."""

import math
from typing import Any

import jax
import jax.numpy as jnp

import peftjax
from peftjax.core import paths
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.quantize.model import pack, quantizable, scheme_of

SHAPES: dict[str, dict[str, Any]] = {
    '1.1B': {
        'vocab_size': 32000,
        'hidden_size': 2048,
        'intermediate_size': 5632,
        'num_hidden_layers': 22,
        'num_attention_heads': 32,
        'num_key_value_heads': 4,
        'head_dim': 64,
        'tie_word_embeddings': False,
    },
    '135M': {
        'vocab_size': 49152,
        'hidden_size': 576,
        'intermediate_size': 1536,
        'num_hidden_layers': 30,
        'num_attention_heads': 9,
        'num_key_value_heads': 3,
        'head_dim': 64,
        'tie_word_embeddings': True,
    },
    'tiny': {
        'vocab_size': 128,
        'hidden_size': 64,
        'intermediate_size': 128,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'head_dim': 16,
        'tie_word_embeddings': False,
    },
}
"""The shapes of TinyLlama, SmolLM2 and a model for tests, by the fields of config.json."""

METHODS = {
    'LoRA q,v': lambda: peftjax.lora(rank=8, targets=r'layers.*/(q|v)_proj'),
    'LoRA all-linear': lambda: peftjax.lora(rank=8, targets=r'layers.*/\w+_proj'),
    'full': peftjax.full,
    'NF4, LoRA q,v': lambda: peftjax.lora(rank=8, targets=r'layers.*/(q|v)_proj'),
}
"""The methods of the rows."""


def abstract_model(shape: str, *, remat: str | None, quantize: str | None) -> peftjax.Model:
    """The model in bfloat16 without its weights; `quantize` names a scheme for its layers."""
    config = LlamaConfig(**SHAPES[shape])
    module = Llama(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, remat=remat)
    ids = {'input_ids': jax.ShapeDtypeStruct((2, 8), jnp.int32)}
    params = jax.eval_shape(module.init, jax.random.key(0), **ids)['params']
    model = peftjax.wrap(module, params, ids, config=config)
    return model if quantize is None else peftjax.quantize(model, quantize)


def random_model(shape: str, *, remat: str | None, quantize: str | None) -> peftjax.Model:
    """The same with random weights, made and quantised one leaf after another.

    The memory in use therefore stays close to that of the model and one leaf, and the peak of the
    process is that of the step.
    """
    model = abstract_model(shape, remat=remat, quantize=None)
    packed = [] if quantize is None else quantizable(model.sites)
    leaves = {}
    for number, (path, leaf) in enumerate(paths.flatten(model.params).items()):
        made = jnp.ones(leaf.shape, leaf.dtype)
        if not path.endswith('/scale'):
            made = _normal(jax.random.key(number), leaf.shape, leaf.dtype)
        if path in packed:
            layout = model.sites.weights[path].layout
            made = pack(made, layout, scheme_of(quantize or ''))
        leaves[path] = jax.block_until_ready(made)
    return model.replace(params=paths.replace(model.params, leaves))


def parameters(model: peftjax.Model) -> int:
    """The number of parameters of the model."""
    return sum(math.prod(leaf.shape) for leaf in paths.flatten(model.params).values())


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.jit(lambda: 0.02 * jax.random.normal(key, shape, dtype))()


def batch_of(shape: str, rows: int, length: int) -> dict[str, jax.Array]:
    """Random tokens, and as targets the next ones; the last position has the first token."""
    ids = jax.random.randint(jax.random.key(7), (rows, length), 0, SHAPES[shape]['vocab_size'])
    return {'input_ids': ids, 'targets': jnp.roll(ids, -1, axis=1)}
