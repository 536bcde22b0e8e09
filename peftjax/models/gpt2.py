"""The GPT-2 decoder: learned positions, layer norms before the sublayers, a fused q, k and v."""

from typing import ClassVar

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
from peftjax.models.gpt2_config import GPT2Config
from peftjax.models.norms import LayerNorm


class _Part(nn.Module):
    """The fields of every part of the decoder."""

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


class _Layers(Decoder):
    """The parts of a GPT-2."""

    block: ClassVar[type[nn.Module]] = _Layer

    config: GPT2Config

    def embedding(self) -> nn.Embed:
        return self._table('wte', self.config.vocab_size)

    def last_norm(self) -> nn.Module:
        epsilon = self.config.layer_norm_epsilon
        return LayerNorm(epsilon, self.dtype, self.param_dtype, name='ln_f')

    def embedded(
        self, embed: nn.Embed, input_ids: jax.Array, positions: jax.Array, deterministic: bool
    ) -> jax.Array:
        rows = embed(input_ids) + self._table('wpe', self.config.n_positions)(positions)
        rate = self.config.embd_pdrop
        return nn.Dropout(rate, deterministic=deterministic, name='dropout')(rows)

    def check_length(self, length: int) -> None:
        if length > self.config.n_positions:
            raise ValueError(
                f'{length} tokens: this checkpoint has {self.config.n_positions} position '
                'embeddings; cut the text'
            )

    def _table(self, name: str, rows: int) -> nn.Embed:
        return nn.Embed(
            rows, self.config.n_embd, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )


class GPT2(_Layers, LanguageModel):
    """A causal language model of the GPT-2 family: logits [B, T, V].

    For inputs, results and errors see `LanguageModel`.

    Example:
        >>> config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=8)
        >>> model, ids = GPT2(config), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids)
        >>> model.apply(variables, input_ids=ids).shape
        (2, 5, 50)

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3.
    """

    peftjax_roles: ClassVar[Roles] = roles_of_writing('wte')


class GPT2Classifier(_Layers, Classifier):
    """A GPT-2 with a head on texts or tokens: logits [B, K] or [B, T, K]; see `Classifier`.

    The head on tokens is called `classifier`, as in transformers.

    Example:
        >>> config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=8)
        >>> model, ids = GPT2Classifier(config, outputs=3), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids)
        >>> model.apply(variables, input_ids=ids).shape
        (2, 3)

    Source: `GPT2ForSequenceClassification` and `GPT2ForTokenClassification` of transformers 5.23.
    """

    peftjax_roles: ClassVar[Roles] = roles_of_reading('wte')
    head_of_tokens: ClassVar[str] = 'classifier'


def _projection(theirs: str, ours: str) -> tuple[names.Rule, ...]:
    # GPT-2's checkpoints hold these linear layers as [in, out], like our leaves.
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
    *names.dense('score', 'score'),
    *names.dense('classifier', 'classifier'),
)
