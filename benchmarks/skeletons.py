"""Skeletons of architectures that peftjax does not have, to count parameters.

A skeleton has the parameters of the real model and passes its inputs through all of them, so that
the sites of adapters are found. It is no reimplementation: its arithmetic has no scales, relative
position biases or masks, and it is only traced abstractly.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

import peftjax
from peftjax.models.attention import AttentionCore, Branch, merge_heads, split_heads
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig
from peftjax.models.gpt2 import GPT2
from peftjax.models.gpt2_config import GPT2Config
from peftjax.models.llama import Llama, RMSNorm
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.stack import apply_stack


@dataclasses.dataclass(frozen=True)
class Shape:
    """A stack of transformer layers, or an encoder and a decoder.

    Attributes:
        layers, decoder_layers: without the latter there is one stack, named `decoder`.
        width, inner, heads, head_dim, vocab: as usual.
        biased: the linear layers that have a bias, of q, k, v, o, wi_0, wi_1, wo.
        gated: whether a feed-forward layer has wi_0, wi_1 and wo instead of wi_0 and wo.
        rms: whether norms have only a scale.
        final_norm: a norm after each stack.
        embedding_norm: a norm before each stack.
        positions: the number of learned positions of each stack.
        buckets: of T5's relative positions, with a bias for each head.
        tied: whether the head is the embedding.
    """

    layers: int
    decoder_layers: int
    width: int
    inner: int
    heads: int
    head_dim: int
    vocab: int
    biased: frozenset[str] = frozenset()
    gated: bool = False
    rms: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    positions: int = 0
    buckets: int = 0
    tied: bool = True


class _Part(nn.Module):
    shape: Shape

    def dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, use_bias=name in self.shape.biased, name=name)

    def norm(self, name: str) -> nn.Module:
        if self.shape.rms:
            return RMSNorm(1e-6, jnp.float32, jnp.float32, name=name)
        return nn.LayerNorm(name=name)


class _Attention(_Part):
    @nn.compact
    def __call__(self, x, memory):
        shape = self.shape
        features = shape.heads * shape.head_dim
        query = split_heads(self.dense(features, 'q')(x), shape.heads)
        key = split_heads(self.dense(features, 'k')(memory), shape.heads)
        value = split_heads(self.dense(features, 'v')(memory), shape.heads)
        attended = AttentionCore(name='core')(query, key, value, None, True)
        return self.dense(shape.width, 'o')(merge_heads(attended))


class _FeedForward(_Part):
    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(self.dense(self.shape.inner, 'wi_0')(x))
        if self.shape.gated:
            hidden = hidden * self.dense(self.shape.inner, 'wi_1')(x)
        return self.dense(self.shape.width, 'wo')(hidden)


class _Layer(_Part):
    crossed: bool

    @nn.compact
    def __call__(self, x, _, memory):
        normed = self.norm('self_norm')(x)
        x = self.add(x, _Attention(self.shape, name='self_attn')(normed, normed), 'self_attn')
        if self.crossed:
            normed = self.norm('cross_norm')(x)
            crossed = _Attention(self.shape, name='cross_attn')(normed, memory)
            x = self.add(x, crossed, 'cross_attn')
        hidden = _FeedForward(self.shape, name='ffn')(self.norm('ffn_norm')(x))
        return self.add(x, hidden, 'ffn'), None

    def add(self, x: jax.Array, output: jax.Array, name: str) -> jax.Array:
        return x + Branch(name=f'{name}_branch')(x, output, x + output)


class _Stack(_Part):
    layers: int
    crossed: bool

    @nn.compact
    def __call__(self, x, memory):
        shape = self.shape
        if shape.positions:
            table = nn.Embed(shape.positions, shape.width, name='positions')
            x = x + table(jnp.arange(x.shape[1])[None])
        if shape.embedding_norm:
            x = self.norm('embedding_norm')(x)
        if shape.buckets:
            self.param('relative', nn.initializers.zeros, (shape.buckets, shape.heads))
        fields = {'shape': shape, 'crossed': self.crossed}
        x, _ = apply_stack(_Layer, fields, x, memory, count=self.layers, scan=True, remat=None)
        return self.norm('final_norm')(x) if shape.final_norm else x


class Transformer(_Part):
    """Logits [B, T, V] of a decoder, or of an encoder and a decoder that reads it."""

    peftjax_roles: ClassVar[peftjax.Roles] = peftjax.Roles(
        token_ids='input_ids',
        decoder_ids='decoder_input_ids',
        attention=r'.*/core',
        residual_end=r'.*branch',
    )

    @nn.compact
    def __call__(self, input_ids, decoder_input_ids=None):
        shape = self.shape
        embed = nn.Embed(shape.vocab, shape.width, name='embed')
        x, stack = embed(input_ids), (shape, shape.layers, False)
        if not shape.decoder_layers:
            x = _Stack(*stack, name='decoder')(x, None)
        else:
            memory = _Stack(*stack, name='encoder')(x, None)
            decoder = _Stack(shape, shape.decoder_layers, True, name='decoder')
            x = decoder(embed(decoder_input_ids), memory)
        return embed.attend(x) if shape.tied else nn.Dense(shape.vocab, False, name='head')(x)


_ALL = frozenset({'q', 'k', 'v', 'o', 'wi_0', 'wi_1', 'wo'})
_IDS = {'input_ids': jax.ShapeDtypeStruct((1, 4), jnp.int32)}


def abstract(module: nn.Module, inputs: dict[str, Any]) -> peftjax.Model:
    """The model of `module` with abstract parameters: nothing is allocated."""
    arrays: dict[str, Any] = zeros(inputs)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), **arrays))
    return peftjax.wrap(module, variables, inputs)


def zeros(inputs: dict[str, Any]) -> dict[str, jax.Array]:
    """Arrays of zeros in the shapes of `inputs`."""
    return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in inputs.items()}


def build(arch: str, sizes: dict[str, Any]) -> peftjax.Model:
    """The abstract model of an entry `model` of paper_counts.json.

    arch: of the entry, or with `+biases` added.

    Raises:
        KeyError: the architecture is unknown.
    """
    return _BUILD[arch](sizes)


def _encoder(sizes: dict[str, Any], positions: int, types: int) -> peftjax.Model:
    config = BertConfig(
        vocab_size=sizes['vocab'],
        hidden_size=sizes['d_model'],
        num_hidden_layers=sizes['layers'],
        num_attention_heads=sizes['heads'],
        intermediate_size=sizes['d_ff'],
        max_position_embeddings=positions,
        type_vocab_size=types,
    )
    return abstract(Bert(config), _IDS)


def _bert(sizes: dict[str, Any]) -> peftjax.Model:
    return _encoder(sizes, 512, 2)


def _roberta(sizes: dict[str, Any]) -> peftjax.Model:
    return _encoder(sizes, 514, 1)


def _llama(sizes: dict[str, Any]) -> peftjax.Model:
    config = LlamaConfig(
        vocab_size=sizes['vocab'],
        hidden_size=sizes['d_model'],
        intermediate_size=sizes['d_ff'],
        num_hidden_layers=sizes['layers'],
        num_attention_heads=sizes['heads'],
        num_key_value_heads=sizes['kv_heads'],
        head_dim=sizes['kv_dim'] // sizes['kv_heads'],
        tie_word_embeddings=sizes['name'] in ('llama-3.2-1b', 'llama-3.2-3b'),
    )
    return abstract(Llama(config), _IDS)


def _gpt2(sizes: dict[str, Any]) -> peftjax.Model:
    config = GPT2Config(
        vocab_size=sizes['vocab'],
        n_embd=sizes['d_model'],
        n_layer=sizes['layers'],
        n_head=sizes['heads'],
        n_positions=2048 if sizes['name'].startswith('gpt3') else 1024,
    )
    return abstract(GPT2(config), _IDS)


def _gpt(sizes: dict[str, Any]) -> peftjax.Model:
    # Like `_gpt2`, but with q, k and v as three matrices, as the papers count them.
    shape = Shape(
        **_common(sizes),
        head_dim=sizes['d_model'] // sizes['heads'],
        biased=_ALL,
        positions=2048 if sizes['name'].startswith('gpt3') else 1024,
    )
    return abstract(Transformer(shape), _IDS)


def _t5(sizes: dict[str, Any], **fields: Any) -> peftjax.Model:
    shape = Shape(**_common(sizes), head_dim=sizes['d_kv'], rms=True, buckets=32, **fields)
    return abstract(Transformer(shape), _IDS | {'decoder_input_ids': _IDS['input_ids']})


def _bart(sizes: dict[str, Any]) -> peftjax.Model:
    shape = Shape(
        **_common(sizes),
        head_dim=sizes['d_model'] // sizes['heads'],
        biased=_ALL,
        final_norm=False,
        embedding_norm=True,
        positions=1026,
    )
    return abstract(Transformer(shape), _IDS | {'decoder_input_ids': _IDS['input_ids']})


def _common(sizes: dict[str, Any]) -> dict[str, Any]:
    return {
        'layers': sizes['layers'],
        'decoder_layers': sizes.get('layers_dec', 0),
        'width': sizes['d_model'],
        'inner': sizes['d_ff'],
        'heads': sizes['heads'],
        'vocab': sizes['vocab'],
    }


def _matrix(sizes: dict[str, Any]) -> peftjax.Model:
    width = sizes['d_model']
    return abstract(
        nn.Dense(width, use_bias=False), {'inputs': jax.ShapeDtypeStruct((1, width), jnp.float32)}
    )


_BUILD = {
    'bert': _bert,
    'roberta': _roberta,
    # DeBERTa has BERT's layers; counts of adapters do not include its relative positions.
    'deberta-v2': _bert,
    'deberta-v3': _bert,
    'gpt2': _gpt2,
    'gpt': _gpt,
    'llama': _llama,
    't5': _t5,
    't5.1.1': lambda sizes: _t5(sizes, gated=True, tied=False),
    # T-Few adds biases to a model without any; its pattern does not match wo.
    't5.1.1+biases': lambda sizes: _t5(sizes, gated=True, tied=False, biased=_ALL - {'wo'}),
    'bart': _bart,
    'matrix': _matrix,
}
