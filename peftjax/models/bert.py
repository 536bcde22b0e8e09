"""The BERT and RoBERTa encoders with a pooler and a head on the sentence or on each token."""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from peftjax.core.masks import Mask
from peftjax.core.roles import Roles
from peftjax.models.attention import (
    AttentionCore,
    Branch,
    activation,
    check_token_inputs,
    is_token,
    merge_heads,
    split_heads,
)
from peftjax.models.bert_config import BertConfig, RobertaConfig
from peftjax.models.norms import LayerNorm
from peftjax.models.stack import apply_stack


class BertOutput(NamedTuple):
    """last_hidden_state [B, T, D]; pooler_output [B, D]."""

    last_hidden_state: jax.Array
    pooler_output: jax.Array


class TokenStates(NamedTuple):
    """last_hidden_state [B, T, D] of an encoder without pooling.

    Raises:
        ValueError: on access to `pooler_output`.

    Example:
        >>> TokenStates(jnp.ones((2, 5, 16))).last_hidden_state.shape
        (2, 5, 16)
    """

    last_hidden_state: jax.Array

    @property
    def pooler_output(self) -> jax.Array:
        raise ValueError(
            'there is no pooled output: the checkpoint has no pooler, or the model was loaded '
            "with pooling='none'; write peftjax.load(..., pooling='mean') for the mean of all "
            'tokens, or read last_hidden_state[:, 0]'
        )


class _Part(nn.Module):
    """The fields of every part of the encoder."""

    config: BertConfig
    deterministic: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    def dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, param_dtype=self.param_dtype, name=name)

    def norm(self) -> LayerNorm:
        return LayerNorm(
            self.config.layer_norm_eps, self.dtype, self.param_dtype, name='layer_norm'
        )

    def add(self, x: jax.Array, output: jax.Array) -> jax.Array:
        """The end of a sublayer: its output is added to the residual, and the sum is normalised."""
        norm = self.norm()
        return norm(x + Branch(name='branch')(x, output, norm(x + output)))

    def dropout(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(
            self.config.hidden_dropout_prob, deterministic=self.deterministic, name='dropout'
        )(x)


class _Embeddings(_Part):
    @nn.compact
    def __call__(self, input_ids, token_type_ids, position_ids):
        config = self.config
        tables = {
            'word_embeddings': (config.vocab_size, input_ids),
            'token_type_embeddings': (config.type_vocab_size, token_type_ids),
            'position_embeddings': (config.max_position_embeddings, position_ids),
        }
        rows = [
            nn.Embed(
                size, config.hidden_size, dtype=self.dtype, param_dtype=self.param_dtype, name=name
            )(ids)
            for name, (size, ids) in tables.items()
        ]
        return self.dropout(self.norm()(sum(rows[1:], rows[0])))


class _Attention(_Part):
    @nn.compact
    def __call__(self, x, mask):
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        query, key, value = (
            split_heads(self.dense(width, name)(x), heads) for name in ('query', 'key', 'value')
        )
        core = AttentionCore(self.config.attention_probs_dropout_prob, name='core')
        attended = merge_heads(core(query, key, value, mask, self.deterministic))
        return self.add(x, self.dropout(self.dense(width, 'output')(attended)))


class _FeedForward(_Part):
    @nn.compact
    def __call__(self, x):
        config = self.config
        hidden = activation(config.hidden_act)(
            self.dense(config.intermediate_size, 'intermediate')(x)
        )
        return self.add(x, self.dropout(self.dense(config.hidden_size, 'output')(hidden)))


class _Layer(_Part):
    @nn.compact
    def __call__(self, x, _, mask):
        fields = self.config, self.deterministic, self.dtype, self.param_dtype
        x = _Attention(*fields, name='attention')(x, mask)
        return _FeedForward(*fields, name='ffn')(x), None


class _Head(_Part):
    """RoBERTa's: a layer between the first token and the outputs."""

    outputs: int

    @nn.compact
    def __call__(self, x, dropout):
        hidden = jnp.tanh(self.dense(self.config.hidden_size, 'dense')(dropout(x)))
        return self.dense(self.outputs, 'out_proj')(dropout(hidden))


class Bert(nn.Module):
    """A BERT or RoBERTa encoder, with or without a head.

    outputs: None returns BertOutput, or TokenStates with pooling 'none'; a number returns logits
        [B, outputs], or [B, T, outputs] with pooling 'none'.
    pooling: 'first' is BERT's own, tanh(W x₀ + b) of the first token. 'mean' averages the tokens
        that are not padding, like sentence encoders. 'none' puts the head, a linear layer in both
        families, on every token. Neither of the last two has pooler weights.
    scan, remat: see `apply_stack`. dtype: of the computation; param_dtype: of the leaves.

    Inputs are keyword arguments. input_ids [B, T]. attention_mask [B, T]: 1 for tokens and 0 for
    padding. token_type_ids and position_ids [B, T]. position_shift is added to the positions of
    tokens unless position_ids are given. deterministic=False turns on the dropout of the config and
    needs `rngs={'dropout': key}`.

    Example:
        >>> config = BertConfig(
        ...     vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=32)
        >>> model, ids = Bert(config, outputs=3), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), input_ids=ids)
        >>> model.apply(variables, input_ids=ids).shape
        (2, 3)

    Source: Devlin et al. 2018, https://arxiv.org/abs/1810.04805; Liu et al. 2019,
    https://arxiv.org/abs/1907.11692.
    """

    peftjax_roles: ClassVar[Roles] = Roles(
        token_ids='input_ids',
        mask='attention_mask',
        positions='position_ids',
        position_shift='position_shift',
        along=('token_type_ids',),
        embedding=r'embeddings/word_embeddings',
        attention=r'.*/core',
        residual_end=r'.*branch',
    )

    config: BertConfig
    outputs: int | None = None
    pooling: str = 'first'
    scan: bool = True
    remat: str | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        deterministic: bool = True,
        position_shift: jax.Array | int = 0,
    ) -> BertOutput | TokenStates | jax.Array:
        check_token_inputs(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
        )
        config = self.config
        roberta = isinstance(config, RobertaConfig)
        length = input_ids.shape[1]
        longest = config.max_position_embeddings - (config.pad_token_id + 1 if roberta else 0)
        if length > longest:
            raise ValueError(
                f'{length} tokens: this checkpoint has {longest} position embeddings; cut the text'
            )
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, 1), jnp.int32)
        if position_ids is None:
            position_ids = jnp.arange(length, dtype=jnp.int32)[None] + position_shift
            if roberta:
                tokens = (input_ids != config.pad_token_id).astype(jnp.int32)
                position_ids = jnp.cumsum(tokens, axis=1) + position_shift
                position_ids = position_ids * tokens + config.pad_token_id
        fields = {
            'config': self.config,
            'deterministic': deterministic,
            'dtype': self.dtype,
            'param_dtype': self.param_dtype,
        }
        x = _Embeddings(**fields, name='embeddings')(input_ids, token_type_ids, position_ids)
        x, _ = apply_stack(
            _Layer,
            fields,
            x,
            Mask(valid=is_token(attention_mask)),
            count=self.config.num_hidden_layers,
            scan=self.scan,
            remat=self.remat,
        )
        if self.outputs is None and self.pooling == 'none':
            return TokenStates(x)
        if self.outputs is None:
            return BertOutput(x, self._pool(x, attention_mask))
        if self.pooling == 'none':
            pooled = x
        elif roberta and self.pooling == 'first':
            pooled = x[:, 0]
        else:
            pooled = self._pool(x, attention_mask)
        return self._head(pooled, self.outputs, deterministic)

    def _pool(self, x: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
        if self.pooling == 'first':
            pooler = nn.Dense(
                self.config.hidden_size,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name='pooler',
            )
            return jnp.tanh(pooler(x[:, 0]))
        if self.pooling != 'mean':
            raise ValueError(
                f"pooling {self.pooling!r} is unknown: use 'first' or 'mean', or 'none' for a head "
                'on every token'
            )
        wide = x.astype(jnp.float32)  # a bfloat16 sum stops growing after some hundred tokens
        if attention_mask is None:
            return wide.mean(axis=1).astype(x.dtype)
        weight = attention_mask.astype(jnp.float32)[:, :, None]
        # A row of padding alone has no mean; it gets zeros, not 0/0.
        mean = (wide * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)
        return mean.astype(x.dtype)

    def _head(self, pooled: jax.Array, outputs: int, deterministic: bool) -> jax.Array:
        config = self.config
        rate = config.classifier_dropout
        rate = config.hidden_dropout_prob if rate is None else rate
        dropout = nn.Dropout(rate, deterministic=deterministic, name='dropout')
        if isinstance(config, RobertaConfig) and self.pooling != 'none':
            return _Head(
                config, deterministic, self.dtype, self.param_dtype, outputs, name='classifier'
            )(pooled, dropout)
        return nn.Dense(
            outputs,
            kernel_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='classifier',
        )(dropout(pooled))
