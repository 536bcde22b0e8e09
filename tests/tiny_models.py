"""Model families in sizes small enough to test, with random weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig, RobertaConfig
from peftjax.models.gemma import Gemma
from peftjax.models.gemma_config import GemmaConfig
from peftjax.models.gpt2 import GPT2
from peftjax.models.gpt2_config import GPT2Config
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from tests.linen import once

BERT = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=12,
)
LLAMA = LlamaConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
ROBERTA = RobertaConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=14,
)
QWEN3 = dataclasses.replace(LLAMA, qk_norm=True)
GEMMA = GemmaConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    sliding=(True, False),
    sliding_window=3,
    attn_logit_softcapping=2.0,
    attention_dropout=0.1,
)
GPT = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=12)
FAMILIES = [
    (Bert, BERT),
    (Bert, ROBERTA),
    (Llama, LLAMA),
    (Llama, QWEN3),
    (Gemma, GEMMA),
    (GPT2, GPT),
]
IDS = np.random.default_rng(0).integers(1, 50, (2, 9)).astype(np.int32)


@once
def initialised(module):
    """Variables of the right shapes, random everywhere; compiling `init` would cost seconds."""
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), input_ids=IDS)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), leaf.dtype), shapes
    )


def run(module, variables, **inputs) -> Any:
    return jax.jit(module.apply)(variables, **inputs)
