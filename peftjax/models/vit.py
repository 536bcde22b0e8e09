"""The ViT and DINOv2 image encoders with a classification or regression head."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from peftjax.core.roles import Roles
from peftjax.models import names
from peftjax.models.attention import AttentionCore, Branch, activation, merge_heads, split_heads
from peftjax.models.norms import LayerNorm
from peftjax.models.stack import apply_stack
from peftjax.models.vit_config import Dinov2Config, ViTConfig


class _Part(nn.Module):
    """The fields of every part of the encoder."""

    config: ViTConfig
    deterministic: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    def dense(self, features: int, name: str, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(
            features, use_bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.config.layer_norm_eps, self.dtype, self.param_dtype, name=name)

    def dropout(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(
            self.config.hidden_dropout_prob, deterministic=self.deterministic, name='dropout'
        )(x)


class _Embeddings(_Part):
    @nn.compact
    def __call__(self, pixel_values):
        config = self.config
        # The image is transposed, so that the kernel is the checkpoint's with all axes reversed,
        # like every other kernel: [width, height, channel, feature].
        patches = nn.Conv(
            config.hidden_size,
            (config.patch_size, config.patch_size),
            strides=config.patch_size,
            padding='VALID',
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='patch_embeddings',
        )(pixel_values.transpose(0, 3, 2, 1)).swapaxes(1, 2)
        batch, height, width, features = patches.shape
        side = config.image_size // config.patch_size
        normal = nn.initializers.normal(0.02)
        token = self.param('cls_token', normal, (1, 1, features), self.param_dtype)
        table = self.param(
            'position_embeddings', normal, (1, 1 + side * side, features), self.param_dtype
        )
        first = jnp.broadcast_to(token, (batch, 1, features)).astype(self.dtype)
        x = jnp.concatenate([first, patches.reshape(batch, -1, features)], axis=1)
        return self.dropout(x + resize_positions(table, side, height, width).astype(self.dtype))


class _Attention(_Part):
    @nn.compact
    def __call__(self, x):
        config = self.config
        query, key, value = (
            split_heads(
                self.dense(config.hidden_size, name, config.qkv_bias)(x),
                config.num_attention_heads,
            )
            for name in ('query', 'key', 'value')
        )
        core = AttentionCore(config.attention_probs_dropout_prob, name='core')
        attended = merge_heads(core(query, key, value, None, self.deterministic))
        return self.dropout(self.dense(config.hidden_size, 'output')(attended))


class _FeedForward(_Part):
    @nn.compact
    def __call__(self, x):
        config = self.config
        if isinstance(config, Dinov2Config) and config.use_swiglu_ffn:
            gate, up = jnp.split(self.dense(2 * config.intermediate_size, 'weights_in')(x), 2, -1)
            output = self.dense(config.hidden_size, 'weights_out')(jax.nn.silu(gate) * up)
        else:
            hidden = self.dense(config.intermediate_size, 'intermediate')(x)
            output = self.dense(config.hidden_size, 'output')(activation(config.hidden_act)(hidden))
        return self.dropout(output)


class _Layer(_Part):
    @nn.compact
    def __call__(self, x, _):
        fields = self.config, self.deterministic, self.dtype, self.param_dtype
        attended = _Attention(*fields, name='attention')(self.norm('layernorm_before')(x))
        x = self._join(x, attended, 'attention')
        hidden = _FeedForward(*fields, name='ffn')(self.norm('layernorm_after')(x))
        return self._join(x, hidden, 'ffn'), None

    def _join(self, x: jax.Array, output: jax.Array, name: str) -> jax.Array:
        if isinstance(self.config, Dinov2Config):
            scale = self.param(
                f'{name}_scale', nn.initializers.ones, x.shape[-1:], self.param_dtype
            )
            output = output * scale.astype(output.dtype)[None, None]
        return x + Branch(name=f'{name}_branch')(x, output, x + output)


class ViT(nn.Module):
    """A ViT or DINOv2 encoder: the states of all patches, or a head on the image.

    outputs: None returns the last hidden states [B, 1 + patches, D], normalised, the class token
        first; a number returns logits [B, outputs]. ViT's head sees the class token. DINOv2's sees
        the class token and the mean of the patches, 2 D numbers.
    scan, remat: see `apply_stack`. dtype: of the computation; param_dtype: of the leaves.

    Inputs are keyword arguments: pixel_values, floats [B, channels, height, width] as the
    checkpoint's image processor makes them. For images of another size than image_size, the
    position embeddings are resized by bicubic interpolation. deterministic=False turns on the
    dropout of the config and needs `rngs={'dropout': key}`.

    Raises:
        ValueError: pixels have another rank, dtype or number of channels, or sides that are no
            multiples of the patch.

    Example:
        >>> config = ViTConfig(
        ...     hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        ...     image_size=12, patch_size=4)
        >>> model, pixels = ViT(config, outputs=3), jnp.ones((2, 3, 12, 12))
        >>> variables = model.init(jax.random.key(0), pixel_values=pixels)
        >>> model.apply(variables, pixel_values=pixels).shape
        (2, 3)

    Source: Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929; Oquab et al. 2023,
    https://arxiv.org/abs/2304.07193. The pooler that some ViT checkpoints keep from pretraining is
    left out.
    """

    peftjax_roles: ClassVar[Roles] = Roles(
        other=('pixel_values',),
        attention=r'.*/core',
        residual_end=r'.*branch',
    )

    config: ViTConfig
    outputs: int | None = None
    scan: bool = True
    remat: str | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pixel_values: jax.Array, deterministic: bool = True) -> jax.Array:
        config = self.config
        _check_pixels(pixel_values, config)
        fields = {
            'config': config,
            'deterministic': deterministic,
            'dtype': self.dtype,
            'param_dtype': self.param_dtype,
        }
        x, _ = apply_stack(
            _Layer,
            fields,
            _Embeddings(**fields, name='embeddings')(pixel_values),
            count=config.num_hidden_layers,
            scan=self.scan,
            remat=self.remat,
        )
        x = LayerNorm(config.layer_norm_eps, self.dtype, self.param_dtype, name='layernorm')(x)
        if self.outputs is None:
            return x
        pooled = x[:, 0]
        if isinstance(config, Dinov2Config):
            wide = x[:, 1:].astype(jnp.float32)
            pooled = jnp.concatenate([pooled, wide.mean(axis=1).astype(x.dtype)], axis=-1)
        return nn.Dense(
            self.outputs,
            kernel_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name='classifier',
        )(pooled)


def resize_positions(table: jax.Array, side: int, height: int, width: int) -> jax.Array:
    """Position embeddings [1, 1 + side², D] for height × width patches: [1, 1 + height·width, D].

    Bicubic, with the constant -3/4 and clamped edges, as in the code of the checkpoints; the row of
    the class token is kept. If the image has the checkpoint's size, the table is returned.

    Example:
        >>> resize_positions(jnp.ones((1, 1 + 9, 4)), 3, 5, 2).shape
        (1, 11, 4)
    """
    if (height, width) == (side, side):
        return table
    grid = table[:, 1:].astype(jnp.float32).reshape(side, side, -1)
    rows, columns = _bicubic(side, height), _bicubic(side, width)
    resized = jnp.einsum('hy,wx,yxd->hwd', rows, columns, grid).reshape(1, height * width, -1)
    return jnp.concatenate([table[:, :1], resized.astype(table.dtype)], axis=1)


def _bicubic(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: the weight of each old position in each new one."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(place).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(place - (first + tap))
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return matrix.astype(np.float32)


def _check_pixels(pixel_values: jax.Array, config: ViTConfig) -> None:
    shape, patch = pixel_values.shape, config.patch_size
    if pixel_values.ndim != 4 or not jnp.issubdtype(pixel_values.dtype, jnp.floating):
        raise ValueError(
            'pixel_values must be floats [batch, channels, height, width], got '
            f'{pixel_values.dtype}{shape}'
        )
    if shape[1] != config.num_channels:
        raise ValueError(
            f'pixel_values {shape} have {shape[1]} channels on axis 1, this checkpoint has '
            f'{config.num_channels}; channels come before height and width'
        )
    if shape[2] % patch or shape[3] % patch or 0 in shape:
        raise ValueError(
            f'pixel_values {shape}: height and width must be multiples of the patch of {patch} '
            'pixels; resize or crop the image'
        )


_LAYER = 'encoder.layer.{layer}'
_SHARED = (
    names.Rule('embeddings.cls_token', 'embeddings/cls_token'),
    names.Rule('embeddings.position_embeddings', 'embeddings/position_embeddings'),
    *names.dense('embeddings.patch_embeddings.projection', 'embeddings/patch_embeddings'),
    *names.dense(f'{_LAYER}.attention.attention.query', 'layers/attention/query'),
    *names.dense(f'{_LAYER}.attention.attention.key', 'layers/attention/key'),
    *names.dense(f'{_LAYER}.attention.attention.value', 'layers/attention/value'),
    *names.dense(f'{_LAYER}.attention.output.dense', 'layers/attention/output'),
    *names.norm('layernorm', 'layernorm'),
    *names.dense('classifier', 'classifier'),
)
VIT_NAMES = (
    *_SHARED,
    *names.norm(f'{_LAYER}.layernorm_before', 'layers/layernorm_before'),
    *names.norm(f'{_LAYER}.layernorm_after', 'layers/layernorm_after'),
    *names.dense(f'{_LAYER}.intermediate.dense', 'layers/ffn/intermediate'),
    *names.dense(f'{_LAYER}.output.dense', 'layers/ffn/output'),
)
DINOV2_NAMES = (
    *_SHARED,
    *names.norm(f'{_LAYER}.norm1', 'layers/layernorm_before'),
    *names.norm(f'{_LAYER}.norm2', 'layers/layernorm_after'),
    names.Rule(f'{_LAYER}.layer_scale1.lambda1', 'layers/attention_scale'),
    names.Rule(f'{_LAYER}.layer_scale2.lambda1', 'layers/ffn_scale'),
    *names.dense(f'{_LAYER}.mlp.fc1', 'layers/ffn/intermediate'),
    *names.dense(f'{_LAYER}.mlp.fc2', 'layers/ffn/output'),
    *names.dense(f'{_LAYER}.mlp.weights_in', 'layers/ffn/weights_in'),
    *names.dense(f'{_LAYER}.mlp.weights_out', 'layers/ffn/weights_out'),
)
# Names of the tensors in transformers' own model (5.x), which files of adapters use.
_ATTENTION_MODULES = (
    *((rf'\.attention\.{each}\.', f'.{each[0]}_proj.') for each in ('query', 'key', 'value')),
    (r'\.attention\.output\.dense\.', '.attention.o_proj.'),
)
VIT_MODULES = (
    *_ATTENTION_MODULES,
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'\.output\.dense\.', '.mlp.fc2.'),
    (r'^encoder\.layer\.', 'layers.'),
)
DINOV2_MODULES = (*_ATTENTION_MODULES, (r'\.mlp\.weights_out\.', '.mlp.down_proj.'))
