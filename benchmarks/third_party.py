"""Unmodified models of other packages: adapted through `wrap`, trained for some steps, merged.

python -m benchmarks.third_party linen   # the BERT of transformers' Flax models, a Linen module
python -m benchmarks.third_party nnx     # the Qwen2 of tunix, an NNX module

Neither package is a requirement of this project. Install each with peftjax in a separate
environment: pip install transformers==4.52.4; pip install google-tunix==0.1.7. Weights are random.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app
from flax import nnx

import peftjax

IDS = jnp.arange(12).reshape(2, 6)
Case = tuple[peftjax.Model, peftjax.PeftTransform, dict[str, Any], Callable[[Any], jax.Array]]


def linen() -> Case:
    """Classification by `FlaxBertForSequenceClassificationModule`: LoRA and the head."""
    config = importlib.import_module('transformers').BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    models = importlib.import_module('transformers.models.bert.modeling_flax_bert')
    module = models.FlaxBertForSequenceClassificationModule(config)
    inputs = {
        'input_ids': IDS,
        'attention_mask': jnp.ones_like(IDS),
        'token_type_ids': jnp.zeros_like(IDS),
        'position_ids': jnp.tile(jnp.arange(6), (2, 1)),
        'head_mask': None,
    }
    model = peftjax.wrap(module, module.init(jax.random.key(0), **inputs), inputs)
    transform = peftjax.chain(
        peftjax.select(r'.*classifier/.*'),
        peftjax.lora(rank=2, targets=r'.*self/(query|value)'),
    )
    return model, transform, inputs, lambda output: output.logits


def qwen2() -> Case:
    """Language modelling by tunix's `Qwen2`, whose projections are einsum layers: LoRA."""
    models = importlib.import_module('tunix.models.qwen2.model')
    config = models.ModelConfig(
        num_layers=2,
        vocab_size=50,
        embed_dim=16,
        hidden_dim=32,
        num_heads=4,
        head_dim=8,
        num_kv_heads=2,
        rope_theta=10000,
        norm_eps=1e-6,
    )
    inputs = {
        'input_tokens': IDS,
        'positions': jnp.tile(jnp.arange(6), (2, 1)),
        'cache': None,
        'attention_mask': jnp.tile(jnp.tril(jnp.ones((6, 6), bool)), (2, 1, 1)),
    }
    model = peftjax.wrap(models.Qwen2(config, rngs=nnx.Rngs(0)), None, inputs)
    transform = peftjax.lora(rank=2, targets=r'.*/(q_proj|v_proj|gate_proj)')
    return model, transform, inputs, lambda output: output[0][:, -1]


def run(case: Case, steps: int = 5) -> tuple[float, float, float]:
    """Loss before and after some steps, and the distance of merged logits from the adapter's."""
    model, transform, inputs, logits_of = case
    predict = peftjax.adapt(model, transform)
    adapter, frozen = transform.init(jax.random.key(1), model)

    def loss(adapter: Any) -> jax.Array:
        logits = logits_of(predict(adapter, frozen, **inputs))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1])).mean()

    optimizer = optax.adam(1e-2)
    state, before = optimizer.init(adapter), loss(adapter)
    for _ in range(steps):
        updates, state = optimizer.update(jax.grad(loss)(adapter), state)
        adapter = optax.apply_updates(adapter, updates)
    merged = logits_of(model.apply(transform.merge(adapter, frozen), **inputs))
    apart = logits_of(predict(adapter, frozen, **inputs))
    return float(before), float(loss(adapter)), float(jnp.abs(merged - apart).max())


def main(argv: Sequence[str]) -> None:
    cases = {'linen': linen, 'nnx': qwen2}
    for name in argv[1:] or cases:
        case = cases[name]()
        print(peftjax.summary(case[1], case[0]))
        before, after, apart = run(case)
        print(f'{name}: loss {before:.4f} -> {after:.4f}, merged logits differ by {apart:.1e}')


if __name__ == '__main__':
    app.run(main)
