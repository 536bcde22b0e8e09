"""The config.json of ViT and DINOv2 checkpoints."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from peftjax.models.attention import activation
from peftjax.models.config_fields import read_config


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT encoder, by the field names of its config.json.

    image_size, patch_size: the sides of squares, in pixels. The checkpoint has a position embedding
    for each patch of an image of image_size, and one for the class token.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    layer_norm_eps: float = 1e-12
    hidden_act: str = 'gelu'
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        activation(self.hidden_act)
        kind = type(self).__name__
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f'{kind}: hidden_size {self.hidden_size} is not a multiple of '
                f'num_attention_heads {self.num_attention_heads}'
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f'{kind}: image_size {self.image_size} is less than patch_size {self.patch_size}'
            )


@dataclasses.dataclass(frozen=True)
class Dinov2Config(ViTConfig):
    """The shape of a DINOv2 encoder: a ViT that scales the output of each sublayer by a vector.

    intermediate_size: mlp_ratio · hidden_size; with use_swiglu_ffn 2/3 of this, rounded up to a
    multiple of 8. The head sees the class token and the mean of the patches.
    """

    intermediate_size: int = 0
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    mlp_ratio: int = 4
    use_swiglu_ffn: bool = False

    def __post_init__(self) -> None:
        size = self.hidden_size * self.mlp_ratio
        if self.use_swiglu_ffn:
            size = (int(size * 2 / 3) + 7) // 8 * 8
        object.__setattr__(self, 'intermediate_size', size)
        super().__post_init__()


# Fields for pretraining, or for use as the backbone of a detector.
_ELSEWHERE = (
    *('encoder_stride', 'pooler_output_size', 'pooler_act', 'use_mask_token', 'layerscale_value'),
    *('apply_layernorm', 'reshape_hidden_states', 'out_features', 'out_indices', 'stage_names'),
)


def parse_vit(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> ViTConfig:
    """Reads the config.json of a model_type 'vit' or 'dinov2'.

    Raises:
        ValueError: fields are missing, unknown or unsupported; the message names them all.
    """
    fields = dict(raw)
    for name in ('image_size', 'patch_size'):
        sides = fields.get(name)
        if isinstance(sides, list) and len(sides) == 2 and sides[0] == sides[1]:
            fields[name] = sides[0]
    return read_config(
        Dinov2Config if raw['model_type'] == 'dinov2' else ViTConfig,
        fields,
        off={'drop_path_rate': (0.0,)},
        harmless=_ELSEWHERE,
        ignore=ignore,
    )
