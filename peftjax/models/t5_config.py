"""The config.json of T5 checkpoints: v1.0, v1.1, Flan and T0."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from peftjax.models.attention import activation
from peftjax.models.config_fields import read_config


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The shape of a T5 encoder and decoder, by the field names of config.json.

    feed_forward_proj: an activation such as 'relu', or 'gated-' and an activation; in 'gated-gelu'
    the gelu is the tanh approximation. scale_decoder_outputs: the head sees states divided by
    √d_model.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    num_decoder_layers: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = 'relu'
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True

    def __post_init__(self) -> None:
        activation(self.activation)

    @property
    def gated(self) -> bool:
        """Whether one half of the hidden features multiplies the other."""
        return self.feed_forward_proj.startswith('gated-')

    @property
    def activation(self) -> str:
        """The activation, as `attention.activation` names it."""
        name = self.feed_forward_proj.removeprefix('gated-')
        return 'gelu_new' if self.gated and name == 'gelu' else name

    @property
    def num_hidden_layers(self) -> int:
        """The layers of both stacks together."""
        return self.num_layers + self.num_decoder_layers


def parse_t5(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> T5Config:
    """Reads a T5 config.json.

    Raises:
        ValueError: fields are missing, unknown or unsupported; the message names them all.
    """
    fields = {
        'num_decoder_layers': raw.get('num_layers'),
        'scale_decoder_outputs': raw.get('tie_word_embeddings', True),  # one field in older files
        **raw,
    }
    # Newer files repeat facts that follow from feed_forward_proj.
    derived = ('dense_act_fn', 'is_gated_act', 'n_positions', 'output_past', 'classifier_dropout')
    for name in ('is_encoder_decoder', 'add_cross_attention', 'is_decoder'):
        fields.pop(name, None)
    return read_config(
        T5Config,
        fields,
        off={},
        harmless=(*derived, 'initializer_factor'),
        ignore=ignore,
    )
