"""The config.json of GPT-2 checkpoints."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from peftjax.models.attention import activation
from peftjax.models.config_fields import read_config


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2 decoder, by the field names of its config.json.

    n_inner: width of the feed-forward layer; None for four times n_embd.
    """

    vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    n_positions: int = 1024
    n_inner: int | None = None
    activation_function: str = 'gelu_new'
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    tie_word_embeddings: bool = True
    classifier_dropout: float | None = None

    def __post_init__(self) -> None:
        activation(self.activation_function)
        if self.n_embd % self.n_head:
            raise ValueError(
                f'GPT2Config: n_embd {self.n_embd} is not a multiple of n_head {self.n_head}'
            )

    @property
    def num_hidden_layers(self) -> int:
        """`n_layer`, under the name that other families use."""
        return self.n_layer

    @property
    def max_position_embeddings(self) -> int:
        """`n_positions`, under the name that other families use."""
        return self.n_positions


def parse_gpt2(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> GPT2Config:
    """Reads a GPT-2 config.json.

    Raises:
        ValueError: fields are missing, unknown or unsupported; the message names them all.
    """
    off = {
        'scale_attn_weights': (True,),
        'scale_attn_by_inverse_layer_idx': (False,),
        'reorder_and_upcast_attn': (False,),
    }
    # The summaries are for heads that a language model lacks; n_ctx repeats n_positions.
    harmless = (
        'n_ctx',
        'summary_activation',
        'summary_first_dropout',
        'summary_proj_to_labels',
        'summary_type',
        'summary_use_proj',
    )
    return read_config(GPT2Config, raw, off=off, harmless=harmless, ignore=ignore)
