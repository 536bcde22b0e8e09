"""The config.json of Whisper checkpoints."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from peftjax.models.attention import activation
from peftjax.models.config_fields import read_config


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """The shape of a Whisper encoder and decoder, by the field names of config.json.

    max_source_positions: positions of the encoder, one for every two frames of the spectrogram.
    """

    vocab_size: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    num_mel_bins: int = 80
    max_source_positions: int = 1500
    max_target_positions: int = 448
    activation_function: str = 'gelu'
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0

    def __post_init__(self) -> None:
        activation(self.activation_function)
        for heads in (self.encoder_attention_heads, self.decoder_attention_heads):
            if self.d_model % heads:
                raise ValueError(
                    f'WhisperConfig: d_model {self.d_model} is not a multiple of {heads} heads'
                )

    @property
    def num_hidden_layers(self) -> int:
        """The layers of both stacks together."""
        return self.encoder_layers + self.decoder_layers


# Fields for generation, for training of the base and for other heads.
_HARMLESS = (
    *('init_std', 'num_hidden_layers', 'median_filter_width', 'alignment_heads', 'max_length'),
    *('forced_decoder_ids', 'suppress_tokens', 'begin_suppress_tokens', 'max_new_tokens'),
    *('classifier_proj_size', 'use_weighted_layer_sum', 'lang_to_id', 'task_to_id'),
    *('mask_time_prob', 'mask_time_length', 'mask_time_min_masks', 'mask_feature_prob'),
    *('mask_feature_length', 'mask_feature_min_masks', 'suppress_ids', 'begin_suppress_ids'),
)


def parse_whisper(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> WhisperConfig:
    """Reads a Whisper config.json.

    Raises:
        ValueError: fields are missing, unknown or unsupported; the message names them all.
    """
    off = {
        'is_encoder_decoder': (True,),
        'tie_word_embeddings': (True,),
        'scale_embedding': (False,),
        'encoder_layerdrop': (0.0,),
        'decoder_layerdrop': (0.0,),
        'apply_spec_augment': (False,),
    }
    return read_config(WhisperConfig, raw, off=off, harmless=_HARMLESS, ignore=ignore)
