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
    check_token_inputs,
    merge_heads,
    split_heads,
)
from peftjax.models.gemma_config import GemmaConfig
from peftjax.models.norms import RMSNorm
from peftjax.models.plain import softcapped
from peftjax.models.read_out import read_out
from peftjax.models.rope import rotate, rotation
from peftjax.models.stack import apply_stack


class _Embed(nn.Embed):
    """A lookup whose rows are multiplied by √D, D their width."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        rows = jnp.take(jnp.asarray(self.embedding, self.dtype), inputs, axis=0)
        return rows * jnp.asarray(math.sqrt(self.features), rows.dtype)


class _Part(nn.Module):
    """What every part of the decoder is told."""

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
        # The core divides by √width; what it should divide by is √query_pre_attn_scalar.
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
        elif not sliding:  # a layer of a loop, not of a scan, is known by itself
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


class Gemma(nn.Module):
    """A causal language model of the Gemma 2 or Gemma 3 family: logits [B, T, V].

    The head is the embedding itself, or `lm_head` where the config does not tie the two.
    scan, remat: see `apply_stack`. dtype: of the computation; param_dtype: of the leaves.

    Inputs are keyword arguments: input_ids [B, T]; attention_mask [B, T], 1 for tokens and 0 for
    padding; segment_ids [B, T] for packed rows: attention stays inside a segment and positions
    restart with it; position_ids [B, T] overrides the positions; deterministic=False turns the
    attention dropout of the config on and needs `rngs={'dropout': key}`.

    cache_length=S makes this the first call of several: it returns the logits of the last token,
    [B, 1, V], and a `Cache` of S slots, in sliding layers as in the others. cache=that, in place
    of attention_mask and segment_ids, lets input_ids [B, T] follow it: logits [B, T, V], and the
    cache with them.

    targets [B, T], the token that each position should predict, returns `TokenScores` in place of
    logits: each one's cross-entropy, and whether it is the likeliest. Few logits are ever held.

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

    peftjax_roles: ClassVar[Roles] = Roles(
        token_ids='input_ids',
        mask='attention_mask',
        positions='position_ids',
        segments='segment_ids',
        targets='targets',
        cache='cache',
        cache_length='cache_length',
        embedding=r'embed_tokens',
        attention=r'.*/core',
        residual_end=r'.*branch',
    )

    config: GemmaConfig
    scan: bool = True
    remat: str | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
        cache_length: int | None = None,
        cache: caches.Cache | None = None,
        targets: jax.Array | None = None,
    ) -> Any:
        given = {
            'attention_mask': attention_mask,
            'position_ids': position_ids,
            'segment_ids': segment_ids,
        }
        check_token_inputs(input_ids, **given, targets=targets)
        config = self.config
        mask, positions = caches.look(
            input_ids.shape[1], cache, **given, window=config.sliding_window
        )
        # Once for all layers: outside the scan, so that they are not computed again in each.
        turns, local_turns = (
            rotation(rope, positions, config.head_dim) for rope in (config.rope, config.local_rope)
        )
        embed = _Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='embed_tokens',
        )
        x, present = apply_stack(
            _Layer,
            {
                'config': config,
                'deterministic': deterministic,
                'dtype': self.dtype,
                'param_dtype': self.param_dtype,
                'keeps': cache is not None or cache_length is not None,
            },
            embed(input_ids),
            (mask, *zip(turns, local_turns, strict=True)),
            None if cache is None else cache.length,
            count=config.num_hidden_layers,
            scan=self.scan,
            remat=self.remat,
            own=(np.array(config.sliding), None if cache is None else (cache.keys, cache.values)),
        )
        if cache_length is not None:
            x = x[:, -1:]
        x = RMSNorm(config.rms_norm_eps, self.dtype, self.param_dtype, 1.0, name='norm')(x)
        logits = read_out(
            x,
            embed,
            tied=config.tie_word_embeddings,
            targets=targets,
            finish=lambda logits: softcapped(logits, config.final_logit_softcapping),
        )
        return caches.with_logits(logits, present, cache, cache_length, attention_mask, positions)


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
)
