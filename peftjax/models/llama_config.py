"""The config.json of Llama, Mistral, Qwen2 and Qwen3 checkpoints."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from peftjax.models.attention import activation
from peftjax.models.config_fields import read_config
from peftjax.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama, Mistral, Qwen2 or Qwen3 decoder; by config.json's names.

    qkv_bias, o_bias, mlp_bias: which projections have a bias. qk_norm: each head of queries and
    keys is normalised before its rotation. sliding_window: the most keys that a query sees, its own
    included; None for all.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    hidden_act: str = 'silu'
    tie_word_embeddings: bool = False
    attention_dropout: float = 0.0
    sliding_window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: Rope = Rope()
    classifier_dropout: float | None = None

    def __post_init__(self) -> None:
        activation(self.hidden_act)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f'LlamaConfig: num_attention_heads {self.num_attention_heads} is not a multiple of '
                f'num_key_value_heads {self.num_key_value_heads}'
            )
        if self.head_dim % 2:
            raise ValueError(f'LlamaConfig: head_dim {self.head_dim} is odd, rotation needs pairs')
        if self.rope.kind == 'divisors' and len(self.rope.divisors) != self.head_dim // 2:
            raise ValueError(
                f'LlamaConfig: {len(self.rope.divisors)} rope divisors for head_dim '
                f'{self.head_dim}, expected {self.head_dim // 2}'
            )


# A file of a family leaves out fields that have the family's default.
_DEFAULTS: dict[str, dict[str, Any]] = {
    'llama': {},
    'mistral': {
        'num_key_value_heads': 8,
        'sliding_window': 4096,
        'max_position_embeddings': 131072,
    },
    'qwen2': {'num_key_value_heads': 32, 'max_position_embeddings': 32768},
    'qwen3': {'num_key_value_heads': 32, 'head_dim': 128, 'max_position_embeddings': 32768},
}


def parse_llama(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> LlamaConfig:
    """Reads the config.json of a model_type in 'llama', 'mistral', 'qwen2', 'qwen3'.

    Raises:
        ValueError: fields are missing, unknown or unsupported; the message names them all.
    """
    family = raw['model_type']
    fields = _DEFAULTS[family] | dict(raw)
    for name in ('hidden_size', 'num_attention_heads', 'num_hidden_layers'):
        if type(fields.get(name)) is not int:
            raise ValueError(f'LlamaConfig: {name} must be an integer, got {fields.get(name)!r}')
    if fields.get('num_key_value_heads') is None:
        fields['num_key_value_heads'] = fields['num_attention_heads']
    if fields.get('head_dim') is None:
        fields['head_dim'] = fields['hidden_size'] // fields['num_attention_heads']
    fields['rope'] = parse_rope(fields)
    fields['sliding_window'] = _parse_window(fields)
    fields['qkv_bias'] = family == 'qwen2' or fields.pop('attention_bias', False)
    fields['qk_norm'] = family == 'qwen3'
    fields['o_bias'] = family != 'qwen2' and fields['qkv_bias']
    return read_config(
        LlamaConfig,
        fields,
        off={
            'attention_bias': (False,),
            'rope_interleaved': (False,),
            'use_mrope': (False,),
            'partial_rotary_factor': (1.0,),
        },
        harmless=('max_window_layers',),
        ignore=ignore,
    )


def parse_rope(fields: dict[str, Any]) -> Rope:
    """Pops the rotation from `fields`: rope_parameters, or rope_theta with rope_scaling."""
    scaling = dict(fields.pop('rope_scaling', None) or {})
    theta = fields.pop('rope_theta', 10000.0)
    scaling = {'rope_theta': theta} | scaling | dict(fields.pop('rope_parameters', None) or {})
    old_kind = scaling.pop('type', 'default')
    raw = {
        'theta': scaling.pop('rope_theta'),
        'kind': scaling.pop('rope_type', old_kind),
    } | scaling
    if raw['kind'] not in ('default', 'linear', 'llama3'):
        raise ValueError(
            f"rope_type {raw['kind']!r} is not supported, only 'default', 'linear' and 'llama3'"
        )
    needed = {
        'default': (),
        'linear': ('factor',),
        'llama3': (
            'factor',
            'low_freq_factor',
            'high_freq_factor',
            'original_max_position_embeddings',
        ),
    }[raw['kind']]
    missing = [name for name in needed if name not in raw]
    if missing:
        raise ValueError(f'rope_type {raw["kind"]!r} needs {", ".join(missing)}')
    return read_config(Rope, raw, off={'partial_rotary_factor': (1.0,)})


def _parse_window(fields: dict[str, Any]) -> int | None:
    """Pops the window from `fields`, in its three spellings; refuses layers that differ."""
    window = fields.pop('sliding_window', None)
    used = fields.pop('use_sliding_window', fields['model_type'] == 'mistral')
    kinds = set(fields.pop('layer_types', None) or ())
    if not kinds and fields['model_type'] == 'qwen2' and used and window is not None:
        # In Qwen2 only the layers from this one on have the window.
        first = fields.get('max_window_layers', 28)
        kinds |= {'full_attention'} if first > 0 else set()
        kinds |= {'sliding_attention'} if first < fields['num_hidden_layers'] else set()
    if not kinds:
        kinds = {'sliding_attention' if used and window is not None else 'full_attention'}
    if kinds == {'full_attention'}:
        return None
    if kinds == {'sliding_attention'} and window is not None:
        return window
    raise ValueError(
        f'LlamaConfig: layer_types {sorted(kinds)} with sliding_window {window} is not supported: '
        'all layers must be the same'
    )
