"""The Gemma 2 and Gemma 3 decoders: sliding and full attention in turn, norms on both sides."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from peftjax.core.roles import Roles
from peftjax.models import cache as caches
from peftjax.models import names
from peftjax.models.attention import (
    AttentionCore,
    Branch,
    activation,
    merge_heads,
    split_heads,
)
from peftjax.models.decoder import (
    Classifier,
    Decoder,
    LanguageModel,
    roles_of_reading,
    roles_of_writing,
)
from peftjax.models.gemma_config import GemmaConfig
from peftjax.models.norms import RMSNorm
from peftjax.models.plain import softcapped
from peftjax.models.rope import rotate, rotation


class _Embed(nn.Embed):
    """A lookup whose rows are multiplied by √D, D their width."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        rows = jnp.take(jnp.asarray(self.embedding, self.dtype), inputs, axis=0)
        return rows * jnp.asarray(math.sqrt(self.features), rows.dtype)


class _Part(nn.Module):
    """The fields of every part of the decoder."""

    config: GemmaConfig
    deterministic: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    def dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(
            features, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.config.rms_norm_eps, self.dtype, self.param_dtype, 1.0, name=name)


class _SelfAttention(_Part):
    @nn.compact
    def __call__(self, x, mask, cos, sin, past, length):
        config = self.config
        heads, shared, width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        query = split_heads(self.dense(heads * width, 'q_proj')(x), heads)
        key = split_heads(self.dense(shared * width, 'k_proj')(x), shared)
        value = split_heads(self.dense(shared * width, 'v_proj')(x), shared)
        if config.qk_norm:
            query, key = self.norm('q_norm')(query), self.norm('k_norm')(key)
        # The core divides by √width, but Gemma divides by √query_pre_attn_scalar.
        query = rotate(query, cos, sin) * math.sqrt(width / config.query_pre_attn_scalar)
        present = caches.extend(past, rotate(key, cos, sin), value, length)
        core = AttentionCore(config.attention_dropout, config.attn_logit_softcapping, name='core')
        attended = core(query, *present, mask, self.deterministic)
        return self.dense(config.hidden_size, 'o_proj')(merge_heads(attended)), present


class _MLP(_Part):
    @nn.compact
    def __call__(self, x):
        config = self.config
        gate = self.dense(config.intermediate_size, 'gate_proj')(x)
        up = self.dense(config.intermediate_size, 'up_proj')(x)
        hidden = activation(config.hidden_activation)(gate) * up
        return self.dense(config.hidden_size, 'down_proj')(hidden)


class _Layer(_Part):
    keeps: bool = False

    @nn.compact
    def __call__(self, x, own, looks, length):
        sliding, past = own
        mask, *turns = looks
        if isinstance(sliding, jax.Array):
            mask = dataclasses.replace(mask, windowed=sliding)
        elif not sliding:  # without a scan, `sliding` is a plain bool
            mask = dataclasses.replace(mask, window=None)
        cos, sin = (jnp.where(sliding, local, whole) for whole, local in turns)
        fields = self.config, self.deterministic, self.dtype, self.param_dtype
        attention = _SelfAttention(*fields, name='self_attn')
        attended, present = attention(self.norm('input_layernorm')(x), mask, cos, sin, past, length)
        attended = self.norm('post_attention_layernorm')(attended)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        hidden = _MLP(*fields, name='mlp')(self.norm('pre_feedforward_layernorm')(x))
        hidden = self.norm('post_feedforward_layernorm')(hidden)
        x = x + Branch(name='mlp_branch')(x, hidden, x + hidden)
        return x, present if self.keeps else None


class _Layers(Decoder):
    """The parts of a Gemma."""

    block: ClassVar[type[nn.Module]] = _Layer
    table: ClassVar[type[nn.Embed]] = _Embed

    config: GemmaConfig

    def last_norm(self) -> nn.Module:
        return RMSNorm(self.config.rms_norm_eps, self.dtype, self.param_dtype, 1.0, name='norm')

    def shared(self, mask: Any, positions: jax.Array) -> tuple[Any, ...]:
        # Outside the scan, so that the angles are computed once and not in each layer.
        turns, local_turns = (
            rotation(rope, positions, self.config.head_dim)
            for rope in (self.config.rope, self.config.local_rope)
        )
        return ((mask, *zip(turns, local_turns, strict=True)),)

    def own(self, past: Any) -> Any:
        return np.array(self.config.sliding), past

    def finished(self, logits: jax.Array) -> jax.Array:
        return softcapped(logits, self.config.final_logit_softcapping)


class Gemma(_Layers, LanguageModel):
    """A causal language model of the Gemma 2 or Gemma 3 family: logits [B, T, V].

    For inputs, results and errors see `LanguageModel`. A cache has as many slots for sliding layers
    as for full ones.

    Example:
        >>> config = GemmaConfig(
        ...     vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=4, num_key_value_heads=2, head_dim=4, sliding=(True, False))
        >>> model, ids = Gemma(config), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids)
        >>> model.apply(variables, input_ids=ids).shape
        (2, 5, 50)

    Source: Gemma Team 2024, https://arxiv.org/abs/2408.00118; 2025,
    https://arxiv.org/abs/2503.19786 (its text model).
    """

    peftjax_roles: ClassVar[Roles] = roles_of_writing('embed_tokens')


class GemmaClassifier(_Layers, Classifier):
    """A Gemma with a head on texts or tokens: logits [B, K] or [B, T, K]; see `Classifier`.

    The head's logits are not bounded by `final_logit_softcapping`.

    Example:
        >>> config = GemmaConfig(
        ...     vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=4, num_key_value_heads=2, head_dim=4, sliding=(True, False))
        >>> model, ids = GemmaClassifier(config, outputs=3), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids)
        >>> model.apply(variables, input_ids=ids).shape
        (2, 3)

    Source: `Gemma2ForSequenceClassification`, `Gemma2ForTokenClassification` and
    `Gemma3TextForSequenceClassification` of transformers 5.23.
    """

    peftjax_roles: ClassVar[Roles] = roles_of_reading('embed_tokens')


_LAYER = 'layers.{layer}'
GEMMA_NAMES = (
    *names.embedding('embed_tokens', 'embed_tokens'),
    *(
        rule
        for name in (
            *('input_layernorm', 'post_attention_layernorm'),
            *('pre_feedforward_layernorm', 'post_feedforward_layernorm'),
            *('self_attn.q_norm', 'self_attn.k_norm'),
        )
        for rule in names.norm(f'{_LAYER}.{name}', f'layers/{name.replace(".", "/")}')
    ),
    *(
        rule
        for name in (
            *('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj'),
            *('mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj'),
        )
        for rule in names.dense(f'{_LAYER}.{name}', f'layers/{name.replace(".", "/")}')
    ),
    *names.norm('norm', 'norm'),
    *names.dense('lm_head', 'lm_head'),
    *names.dense('score', 'score'),
)
