"""What the config.json of a Gemma 2 or Gemma 3 (text) checkpoint says."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from peftjax.models.attention import activation
from peftjax.models.config_fields import read_config
from peftjax.models.llama_config import parse_rope
from peftjax.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """The shape of a Gemma 2 or Gemma 3 decoder, by the field names of its config.json.

    query_pre_attn_scalar: scores are divided by its root. sliding: for each layer, whether a query
    sees only `sliding_window` keys, its own included. rope, local_rope: the rotation in full and in
    sliding layers. attn_logit_softcapping, final_logit_softcapping: c of c · tanh(x / c) on scores
    and on logits; None for no bound. qk_norm: each head of queries and keys is normalised before
    its rotation, as in Gemma 3.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    sliding: tuple[bool, ...]
    head_dim: int = 256
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    hidden_activation: str = 'gelu_pytorch_tanh'
    tie_word_embeddings: bool = True
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256.0
    sliding_window: int = 4096
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    qk_norm: bool = False
    rope: Rope = Rope()
    local_rope: Rope = Rope()
    classifier_dropout: float | None = None

    def __post_init__(self) -> None:
        activation(self.hidden_activation)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f'GemmaConfig: num_attention_heads {self.num_attention_heads} is not a multiple of '
                f'num_key_value_heads {self.num_key_value_heads}'
            )
        if self.head_dim % 2:
            raise ValueError(f'GemmaConfig: head_dim {self.head_dim} is odd, rotation needs pairs')
        if len(self.sliding) != self.num_hidden_layers:
            raise ValueError(
                f'GemmaConfig: {len(self.sliding)} layer_types for num_hidden_layers '
                f'{self.num_hidden_layers}'
            )
        for name in ('query_pre_attn_scalar', 'attn_logit_softcapping', 'final_logit_softcapping'):
            if getattr(self, name) == 0:
                raise ValueError(f'GemmaConfig: {name} must be positive, got 0')


# Values of fields that a file leaves out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    'gemma2': {
        'num_key_value_heads': 4,
        'attn_logit_softcapping': 50.0,
        'final_logit_softcapping': 30.0,
    },
    'gemma3_text': {
        'num_key_value_heads': 4,
        'vocab_size': 262208,
        'max_position_embeddings': 131072,
    },
}
_KINDS = ('sliding_attention', 'full_attention')


def parse_gemma(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> GemmaConfig:
    """Reads the config.json of a model_type 'gemma2' or 'gemma3_text'.

    Raises:
        ValueError: fields are missing, unknown or unsupported; the message names them all.
    """
    family = raw['model_type']
    fields = _DEFAULTS[family] | dict(raw)
    if type(fields.get('num_hidden_layers')) is not int:
        raise ValueError(
            f'GemmaConfig: num_hidden_layers must be an integer, got '
            f'{fields.get("num_hidden_layers")!r}'
        )
    fields['sliding'] = _sliding(fields)
    fields['qk_norm'] = family == 'gemma3_text'
    fields['rope'], fields['local_rope'] = _ropes(fields)
    off = {'attention_bias': (False,), 'use_bidirectional_attention': (None, False)}
    if family == 'gemma3_text':
        # transformers reads the field but does not use it.
        off['attn_logit_softcapping'] = (None,)
        if fields.get('attn_logit_softcapping', None) is None:
            fields.pop('attn_logit_softcapping', None)
    return read_config(
        GemmaConfig, fields, off=off, harmless=('cache_implementation', 'hidden_act'), ignore=ignore
    )


def _sliding(fields: dict[str, Any]) -> tuple[bool, ...]:
    """Pops the kinds of layers from `fields`, in their three spellings: True for sliding."""
    count, kinds = fields['num_hidden_layers'], fields.pop('layer_types', None)
    default = 2 if fields['model_type'] == 'gemma2' else 6
    spelled = fields.pop('_sliding_window_pattern', default)
    period = fields.pop('sliding_window_pattern', spelled)
    if kinds is None:
        if type(period) is not int or period < 1:
            raise ValueError(
                f'GemmaConfig: sliding_window_pattern {period!r} is not a period; write a whole '
                'number from 1'
            )
        return tuple(bool((layer + 1) % period) for layer in range(min(count, 10_000)))
    if not isinstance(kinds, list) or not all(kind in _KINDS for kind in kinds):
        raise ValueError(f'GemmaConfig: layer_types {kinds!r} are not a list of {_KINDS}')
    return tuple(kind == 'sliding_attention' for kind in kinds)


def _ropes(fields: dict[str, Any]) -> tuple[Rope, Rope]:
    """Pops the rotations from `fields`, in both spellings: of full layers, of sliding layers."""
    if fields['model_type'] == 'gemma2':
        rope = parse_rope(fields)
        return rope, rope
    both = fields.pop('rope_parameters', None) or {}
    local_theta = fields.pop('rope_local_base_freq', 1e4)
    if set(both) - set(_KINDS) or not all(isinstance(each, dict) for each in both.values()):
        raise ValueError(f'GemmaConfig: rope_parameters {both!r} must be by kind of layer {_KINDS}')
    whole = {
        'rope_theta': fields.pop('rope_theta', 1e6),
        'rope_scaling': fields.pop('rope_scaling', None),
        'rope_parameters': both.get('full_attention'),
    }
    local = {'rope_theta': local_theta, 'rope_parameters': both.get('sliding_attention')}
    return parse_rope(whole), parse_rope(local)
