"""The config.json of BERT and RoBERTa checkpoints."""

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

    def __post_init__(self) -> None:
        activation(self.hidden_act)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f'BertConfig: hidden_size {self.hidden_size} is not a multiple of '
                f'num_attention_heads {self.num_attention_heads}'
            )


def parse_bert(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> BertConfig:
    """Reads a BERT config.json.

    Raises:
        ValueError: fields are missing, unknown or unsupported; the message names them all.
    """
    off = {'position_embedding_type': ('absolute',)}
    return read_config(BertConfig, raw, off=off, harmless=('tie_word_embeddings',), ignore=ignore)


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The shape of a RoBERTa encoder: BERT's, but padding takes no position.

    pad_token_id: the id of padding. Positions of tokens begin at pad_token_id + 1, so the longest
    text has max_position_embeddings - pad_token_id - 1 tokens. The head has a hidden layer and no
    pooler.
    """

    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1


def parse_roberta(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> RobertaConfig:
    """Reads the config.json of a RoBERTa or XLM-RoBERTa encoder.

    Raises:
        ValueError: fields are missing, unknown or unsupported; the message names them all.
    """
    # Fields that a file leaves out have BERT's defaults.
    fields = {
        **{'max_position_embeddings': 512, 'type_vocab_size': 2, 'layer_norm_eps': 1e-12},
        **raw,
    }
    off = {'position_embedding_type': ('absolute',)}
    return read_config(
        RobertaConfig, fields, off=off, harmless=('tie_word_embeddings',), ignore=ignore
    )
