"""What a BERT checkpoint's config.json says."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from peftjax.models.attention import activation
from peftjax.models.config_fields import read_config


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT encoder, by the field names of its config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = 'gelu'
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None

    def __post_init__(self):
        activation(self.hidden_act)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f'BertConfig: hidden_size {self.hidden_size} is not a multiple of '
                f'num_attention_heads {self.num_attention_heads}'
            )


def parse_bert(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> BertConfig:
    """Reads a BERT config.json.

    Raises:
        ValueError: names every field that is missing, unknown or asks for something not built.
    """
    off = {'position_embedding_type': ('absolute',)}
    return read_config(BertConfig, raw, off=off, harmless=('tie_word_embeddings',), ignore=ignore)
