"""The Llama decoder: grouped-query attention, rotary positions, RMS norm, SwiGLU."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
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
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.norms import RMSNorm
from peftjax.models.rope import rotate, rotation


class _Part(nn.Module):
    """The fields of every part of the decoder."""

    config: LlamaConfig
    deterministic: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    def dense(self, features: int, name: str, use_bias: bool) -> nn.Dense:
        return nn.Dense(
            features, use_bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def norm(self, name: str) -> nn.Module:
        return RMSNorm(self.config.rms_norm_eps, self.dtype, self.param_dtype, name=name)


class _SelfAttention(_Part):
    @nn.compact
    def __call__(self, x, mask, cos, sin, past, length):
        config = self.config
        heads, shared, width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        query = split_heads(self.dense(heads * width, 'q_proj', config.qkv_bias)(x), heads)
        key = split_heads(self.dense(shared * width, 'k_proj', config.qkv_bias)(x), shared)
        value = split_heads(self.dense(shared * width, 'v_proj', config.qkv_bias)(x), shared)
        if config.qk_norm:
            query, key = self.norm('q_norm')(query), self.norm('k_norm')(key)
        core = AttentionCore(config.attention_dropout, name='core')
        present = caches.extend(past, rotate(key, cos, sin), value, length)
        attended = core(rotate(query, cos, sin), *present, mask, self.deterministic)
        output = self.dense(config.hidden_size, 'o_proj', config.o_bias)(merge_heads(attended))
        return output, present


class _MLP(_Part):
    @nn.compact
    def __call__(self, x):
        config = self.config
        gate = self.dense(config.intermediate_size, 'gate_proj', config.mlp_bias)(x)
        up = self.dense(config.intermediate_size, 'up_proj', config.mlp_bias)(x)
        hidden = activation(config.hidden_act)(gate) * up
        return self.dense(config.hidden_size, 'down_proj', config.mlp_bias)(hidden)


class _Layer(_Part):
    keeps: bool = False

    @nn.compact
    def __call__(self, x, past, mask, length, cos, sin):
        fields = self.config, self.deterministic, self.dtype, self.param_dtype
        attention = _SelfAttention(*fields, name='self_attn')
        attended, present = attention(self.norm('input_layernorm')(x), mask, cos, sin, past, length)
        x = x + Branch(name='self_attn_branch')(x, attended, x + attended)
        hidden = _MLP(*fields, name='mlp')(self.norm('post_attention_layernorm')(x))
        x = x + Branch(name='mlp_branch')(x, hidden, x + hidden)
        return x, present if self.keeps else None


class _Layers(Decoder):
    """The parts of a Llama."""

    block: ClassVar[type[nn.Module]] = _Layer

    config: LlamaConfig

    def shared(self, mask: Any, positions: jax.Array) -> tuple[Any, ...]:
        # Outside the scan, so that the angles are computed once and not in each layer.
        return mask, *rotation(self.config.rope, positions, self.config.head_dim)


class Llama(_Layers, LanguageModel):
    """A causal language model of the Llama family: logits [B, T, V].

    For inputs, results and errors see `LanguageModel`.

    Example:
        >>> config = LlamaConfig(
        ...     vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=4, num_key_value_heads=2, head_dim=4)
        >>> model, ids = Llama(config), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids)
        >>> model.apply(variables, input_ids=ids).shape
        (2, 5, 50)

    Source: Touvron et al. 2023, https://arxiv.org/abs/2302.13971.
    """

    peftjax_roles: ClassVar[Roles] = roles_of_writing('embed_tokens')


class LlamaClassifier(_Layers, Classifier):
    """A Llama with a head on texts or tokens: logits [B, K] or [B, T, K]; see `Classifier`.

    Example:
        >>> config = LlamaConfig(
        ...     vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=4, num_key_value_heads=2, head_dim=4)
        >>> model, ids = LlamaClassifier(config, outputs=3), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids)
        >>> model.apply(variables, input_ids=ids).shape
        (2, 3)

    Source: `LlamaForSequenceClassification` and `LlamaForTokenClassification` of transformers 5.23.
    """

    peftjax_roles: ClassVar[Roles] = roles_of_reading('embed_tokens')


_LAYER = 'layers.{layer}'
LLAMA_NAMES = (
    *names.embedding('embed_tokens', 'embed_tokens'),
    *names.norm(f'{_LAYER}.input_layernorm', 'layers/input_layernorm'),
    *names.dense(f'{_LAYER}.self_attn.q_proj', 'layers/self_attn/q_proj'),
    *names.dense(f'{_LAYER}.self_attn.k_proj', 'layers/self_attn/k_proj'),
    *names.dense(f'{_LAYER}.self_attn.v_proj', 'layers/self_attn/v_proj'),
    *names.dense(f'{_LAYER}.self_attn.o_proj', 'layers/self_attn/o_proj'),
    *names.norm(f'{_LAYER}.self_attn.q_norm', 'layers/self_attn/q_norm'),
    *names.norm(f'{_LAYER}.self_attn.k_norm', 'layers/self_attn/k_norm'),
    *names.norm(f'{_LAYER}.post_attention_layernorm', 'layers/post_attention_layernorm'),
    *names.dense(f'{_LAYER}.mlp.gate_proj', 'layers/mlp/gate_proj'),
    *names.dense(f'{_LAYER}.mlp.up_proj', 'layers/mlp/up_proj'),
    *names.dense(f'{_LAYER}.mlp.down_proj', 'layers/mlp/down_proj'),
    *names.norm('norm', 'norm'),
    *names.dense('lm_head', 'lm_head'),
    *names.dense('score', 'score'),
)
