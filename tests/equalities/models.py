"""Small models of every family, and two of Flax's own attention."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import peftjax
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig, RobertaConfig
from peftjax.models.gemma import Gemma
from peftjax.models.gemma_config import GemmaConfig
from peftjax.models.gpt2 import GPT2
from peftjax.models.gpt2_config import GPT2Config
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.t5 import T5
from peftjax.models.t5_config import T5Config
from peftjax.models.vit import ViT
from peftjax.models.vit_config import ViTConfig
from peftjax.models.whisper import Whisper
from peftjax.models.whisper_config import WhisperConfig

VOCABULARY, WIDTH, LENGTH = 40, 16, 7
_TOKENS = jnp.ones((2, LENGTH), jnp.int32)
TEXT = {'input_ids': _TOKENS, 'attention_mask': _TOKENS}
_WRITTEN = {'decoder_input_ids': _TOKENS, 'decoder_attention_mask': _TOKENS}


def drawn(shapes: Any, seed: int = 0) -> Any:
    """Parameters that make every part of a model count."""
    random = np.random.default_rng(seed)

    def leaf(path: Any, shape: Any) -> jax.Array:
        ones = 'scale' in jax.tree_util.keystr(path)
        return jnp.asarray(ones + (0.1 if ones else 0.3) * random.normal(size=shape.shape), 'f4')

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _wrapped(module: nn.Module, inputs: dict[str, Any], **options: Any) -> peftjax.Model:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), **inputs)['params'])
    return peftjax.wrap(module, drawn(shapes), inputs, **options)


class _LinenText(nn.Module):
    """A decoder with Flax's attention, whose mask the caller's padding and order make."""

    @nn.compact
    def __call__(self, ids: jax.Array, real: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH, name='embed')(ids)
        mask = nn.make_causal_mask(ids, dtype=bool) & (real[:, None, None, :] == 1)
        for number in range(2):
            attention = nn.MultiHeadDotProductAttention(2, name=f'attention_{number}')
            x = x + attention(nn.LayerNorm(name=f'norm_{number}')(x), mask=mask)
            x = x + nn.Dense(WIDTH, name=f'dense_{number}')(nn.gelu(x))
        return nn.Dense(VOCABULARY, name='head')(x)


class _NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(x, mask=mask)
        return x + self.dense(nnx.gelu(x))


class _NnxText(nnx.Module):
    peftjax_roles = peftjax.Roles(token_ids='ids', mask='real', embedding=r'embed')

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List([_NnxBlock(rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, ids: jax.Array, real: jax.Array) -> jax.Array:
        x = self.embed(ids)
        mask = jnp.tril(jnp.ones((1, 1, *ids.shape[1:] * 2), bool)) & (real == 1)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


def _llama() -> peftjax.Model:
    config = LlamaConfig(VOCABULARY, WIDTH, 24, 2, 4, 2, 4, sliding_window=4)
    return _wrapped(Llama(config), TEXT)


def _gemma() -> peftjax.Model:
    config = GemmaConfig(
        VOCABULARY, WIDTH, 24, 2, 4, 2, (True, False), 4, sliding_window=4,
        query_pre_attn_scalar=4.0, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    )  # fmt: skip
    return _wrapped(Gemma(config), TEXT)


def _t5() -> peftjax.Model:
    return _wrapped(T5(T5Config(VOCABULARY, WIDTH, 4, 24, 2, 4, 2)), {**TEXT, **_WRITTEN})


def _whisper() -> peftjax.Model:
    config = WhisperConfig(VOCABULARY, WIDTH, 2, 4, 24, 2, 4, 24, 4, 6, 24)
    features = jnp.ones((2, 4, 12), jnp.float32)
    return _wrapped(Whisper(config), {'input_features': features, **_WRITTEN})


def _vit() -> peftjax.Model:
    config = ViTConfig(WIDTH, 2, 4, 24, image_size=8, patch_size=4)
    return _wrapped(ViT(config, outputs=3), {'pixel_values': jnp.ones((2, 3, 8, 8))})


def _linen() -> peftjax.Model:
    roles = peftjax.Roles(token_ids='ids', mask='real', embedding=r'embed')
    return _wrapped(_LinenText(), {'ids': _TOKENS, 'real': _TOKENS}, roles=roles)


def _nnx() -> peftjax.Model:
    model = peftjax.wrap(_NnxText(nnx.Rngs(0)), None, {'ids': _TOKENS, 'real': _TOKENS})
    return model.replace(params=drawn(jax.eval_shape(lambda: model.params)))


_BUILDERS: dict[str, Callable[[], peftjax.Model]] = {
    'llama': _llama,
    'gemma': _gemma,
    'gpt2': lambda: _wrapped(GPT2(GPT2Config(VOCABULARY, WIDTH, 2, 4, 24)), TEXT),
    'bert': lambda: _wrapped(Bert(BertConfig(VOCABULARY, WIDTH, 2, 4, 24, 24)), TEXT),
    'roberta': lambda: _wrapped(Bert(RobertaConfig(VOCABULARY, WIDTH, 2, 4, 24, 24)), TEXT),
    't5': _t5,
    'whisper': _whisper,
    'vit': _vit,
    'linen': _linen,
    'nnx': _nnx,
}
MODELS = {name: functools.cache(build) for name, build in _BUILDERS.items()}
