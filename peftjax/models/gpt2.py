"""The GPT-2 decoder: learned positions, layer norms before the sublayers, a fused q, k and v."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
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
from peftjax.models.gpt2_config import GPT2Config
from peftjax.models.norms import LayerNorm
from peftjax.models.read_out import read_out
from peftjax.models.stack import apply_stack


class _Part(nn.Module):
    """What every part of the decoder is told."""

    config: GPT2Config
    deterministic: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    def dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, param_dtype=self.param_dtype, name=name)

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.config.layer_norm_epsilon, self.dtype, self.param_dtype, name=name)

    def dropout(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(
            self.config.resid_pdrop, deterministic=self.deterministic, name='dropout'
        )(x)


class _SelfAttention(_Part):
    @nn.compact
    def __call__(self, x, mask, past, length):
        width, heads = self.config.n_embd, self.config.n_head
        fused = self.dense(3 * width, 'c_attn')(x)
        query, key, value = (split_heads(part, heads) for part in jnp.split(fused, 3, axis=-1))
        core = AttentionCore(self.config.attn_pdrop, name='core')
        present = caches.extend(past, key, value, length)
        attended = merge_heads(core(query, *present, mask, self.deterministic))
        return self.dropout(self.dense(width, 'c_proj')(attended)), present


class _MLP(_Part):
    @nn.compact
    def __call__(self, x):
        config = self.config
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        hidden = activation(config.activation_function)(self.dense(inner, 'c_fc')(x))
        return self.dropout(self.dense(config.n_embd, 'c_proj')(hidden))


class _Layer(_Part):
    keeps: bool = False

    @nn.compact
    def __call__(self, x, past, mask, length):
        fields = self.config, self.deterministic, self.dtype, self.param_dtype
        attention = _SelfAttention(*fields, name='attn')
        attended, present = attention(self.norm('ln_1')(x), mask, past, length)
        x = x + Branch(name='attn_branch')(x, attended, x + attended)
        hidden = _MLP(*fields, name='mlp')(self.norm('ln_2')(x))
        x = x + Branch(name='mlp_branch')(x, hidden, x + hidden)
        return x, present if self.keeps else None


class GPT2(nn.Module):
    """A causal language model of the GPT-2 family: logits [B, T, V].

    The head is the embedding `wte` itself, or `lm_head` where the config does not tie the two.
    scan, remat: see `apply_stack`. dtype: of the computation; param_dtype: of the leaves.

    Inputs are keyword arguments: input_ids [B, T]; attention_mask [B, T], 1 for tokens and 0 for
    padding; segment_ids [B, T] for packed rows: attention stays inside a segment and positions
    restart with it; position_ids [B, T] overrides the positions, which count padding too;
    deterministic=False turns the dropout rates of the config on and needs `rngs={'dropout': key}`.

    cache_length=S makes this the first call of several: it returns the logits of the last token,
    [B, 1, V], and a `Cache` of S slots. cache=that, in place of attention_mask and segment_ids,
    lets input_ids [B, T] follow it: logits [B, T, V], and the cache with them.

    targets [B, T], the token that each position should predict, returns `TokenScores` in place of
    logits: each one's cross-entropy, and whether it is the likeliest. Few logits are ever held.

    Example:
        >>> config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=8)
        >>> model, ids = GPT2(config), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids)
        >>> model.apply(variables, input_ids=ids).shape
        (2, 5, 50)

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3.
    """

    peftjax_roles: ClassVar[Roles] = Roles(
        token_ids='input_ids',
        mask='attention_mask',
        positions='position_ids',
        segments='segment_ids',
        targets='targets',
        cache='cache',
        cache_length='cache_length',
        embedding=r'wte',
        attention=r'.*/core',
        residual_end=r'.*branch',
    )

    config: GPT2Config
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
        config, length = self.config, input_ids.shape[1]
        longest = cache_length or (length if cache is None else cache.mask.shape[1])
        if max(length, longest) > config.n_positions:
            raise ValueError(
                f'{max(length, longest)} tokens: this checkpoint has {config.n_positions} position '
                'embeddings'
            )
        mask, position_ids = caches.look(length, cache, **given, window=None)
        tokens, positions = (
            nn.Embed(size, config.n_embd, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
            for name, size in (('wte', config.vocab_size), ('wpe', config.n_positions))
        )
        dropout = nn.Dropout(config.embd_pdrop, deterministic=deterministic, name='dropout')
        x, present = apply_stack(
            _Layer,
            {
                'config': config,
                'deterministic': deterministic,
                'dtype': self.dtype,
                'param_dtype': self.param_dtype,
                'keeps': cache is not None or cache_length is not None,
            },
            dropout(tokens(input_ids) + positions(position_ids)),
            mask,
            None if cache is None else cache.length,
            count=config.n_layer,
            scan=self.scan,
            remat=self.remat,
            own=None if cache is None else (cache.keys, cache.values),
        )
        if cache_length is not None:
            x = x[:, -1:]
        x = LayerNorm(config.layer_norm_epsilon, self.dtype, self.param_dtype, name='ln_f')(x)
        logits = read_out(x, tokens, tied=config.tie_word_embeddings, targets=targets)
        return caches.with_logits(
            logits, present, cache, cache_length, attention_mask, position_ids
        )


def _projection(theirs: str, ours: str) -> tuple[names.Rule, ...]:
    # GPT-2's own linear layers are kept [in, out] in the file as well.
    return names.Rule(f'{theirs}.weight', f'{ours}/kernel'), names.Rule(
        f'{theirs}.bias', f'{ours}/bias'
    )


_LAYER = 'h.{layer}'
GPT2_NAMES = (
    *names.embedding('wte', 'wte'),
    *names.embedding('wpe', 'wpe'),
    *names.norm(f'{_LAYER}.ln_1', 'layers/ln_1'),
    *_projection(f'{_LAYER}.attn.c_attn', 'layers/attn/c_attn'),
    *_projection(f'{_LAYER}.attn.c_proj', 'layers/attn/c_proj'),
    *names.norm(f'{_LAYER}.ln_2', 'layers/ln_2'),
    *_projection(f'{_LAYER}.mlp.c_fc', 'layers/mlp/c_fc'),
    *_projection(f'{_LAYER}.mlp.c_proj', 'layers/mlp/c_proj'),
    *names.norm('ln_f', 'ln_f'),
    *names.dense('lm_head', 'lm_head'),
)
