"""Llama-family models in GGUF files: their config, their tensor names, and the rotary order."""

import re
from collections.abc import Collection
from typing import Any

import numpy as np

from peftjax.interop.errors import CheckpointError
from peftjax.interop.files.tensors import Header, Packed, Tensors
from peftjax.interop.gguf.format import GgufFile, read_packed, read_tensor
from peftjax.models import names
from peftjax.models.config_fields import read_config
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.rope import Rope

_LAYER = 'blk.{layer}'
LLAMA_GGUF_NAMES = (
    *names.embedding('token_embd', 'embed_tokens'),
    *names.norm(f'{_LAYER}.attn_norm', 'layers/input_layernorm'),
    *names.dense(f'{_LAYER}.attn_q', 'layers/self_attn/q_proj'),
    *names.dense(f'{_LAYER}.attn_k', 'layers/self_attn/k_proj'),
    *names.dense(f'{_LAYER}.attn_v', 'layers/self_attn/v_proj'),
    *names.dense(f'{_LAYER}.attn_output', 'layers/self_attn/o_proj'),
    *names.norm(f'{_LAYER}.ffn_norm', 'layers/post_attention_layernorm'),
    *names.dense(f'{_LAYER}.ffn_gate', 'layers/mlp/gate_proj'),
    *names.dense(f'{_LAYER}.ffn_up', 'layers/mlp/up_proj'),
    *names.dense(f'{_LAYER}.ffn_down', 'layers/mlp/down_proj'),
    *names.norm('output_norm', 'norm'),
    *names.dense('output', 'lm_head'),
    # No GGUF file has a classifier head: it is always new.
    *names.dense('score', 'score'),
)
# This tensor is read into the config, not into a leaf.
ROPE_DIVISORS = 'rope_freqs.weight'

_FIELDS = {
    'embedding_length': 'hidden_size',
    'block_count': 'num_hidden_layers',
    'feed_forward_length': 'intermediate_size',
    'context_length': 'max_position_embeddings',
    'attention.head_count': 'num_attention_heads',
    'attention.head_count_kv': 'num_key_value_heads',
    'attention.key_length': 'head_dim',
    'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
    'attention.sliding_window': 'sliding_window',
}


def parse_gguf(file: GgufFile, ignore: Collection[str] = ()) -> LlamaConfig:
    """The config of a GGUF file of the architectures llama (Mistral too) and qwen2.

    Raises:
        CheckpointError: another architecture, or a file without the tensors that sizes come from.
        ValueError: names every metadata field that is missing, unknown or not supported.
    """
    architecture = file.metadata.get('general.architecture')
    if architecture not in ('llama', 'qwen2'):
        raise CheckpointError(
            f"{file.path}: general.architecture {architecture!r} is not supported, only 'llama' "
            "and 'qwen2'"
        )
    if 'token_embd.weight' not in file.tensors:
        raise CheckpointError(f'{file.path}: no tensor token_embd.weight')
    prefix = f'{architecture}.'
    raw = {
        name.removeprefix(prefix): value
        for name, value in file.metadata.items()
        if name.startswith(prefix)
    }
    fields: dict[str, Any] = {_FIELDS.get(name, name): value for name, value in raw.items()}
    heads, width = fields.get('num_attention_heads'), fields.get('hidden_size')
    if 'head_dim' not in fields and isinstance(heads, int) and isinstance(width, int) and heads:
        fields['head_dim'] = width // heads
    fields.setdefault('num_key_value_heads', heads)
    fields['rope'] = _rope(file, fields)
    fields |= {
        'vocab_size': file.tensors['token_embd.weight'].shape[0],
        'tie_word_embeddings': 'output.weight' not in file.tensors,
        'qkv_bias': 'blk.0.attn_q.bias' in file.tensors,
        'o_bias': 'blk.0.attn_output.bias' in file.tensors,
        'mlp_bias': 'blk.0.ffn_gate.bias' in file.tensors,
    }
    off = {
        'expert_count': (0,),
        'attention.value_length': (fields.get('head_dim'),),
        'rope.dimension_count': (fields.get('head_dim'),),
    }
    config = read_config(LlamaConfig, fields, off=off, ignore=ignore)
    _check_sizes(file, config)
    return config


def _check_sizes(file: GgufFile, config: LlamaConfig) -> None:
    """Compares sizes with the tensors, before a damaged size becomes that of a computation."""
    width = config.hidden_size
    expected = {
        'token_embd.weight': (config.vocab_size, width),
        'blk.0.attn_q.weight': (config.num_attention_heads * config.head_dim, width),
        'blk.0.attn_k.weight': (config.num_key_value_heads * config.head_dim, width),
        'blk.0.ffn_gate.weight': (config.intermediate_size, width),
    }
    for name, shape in expected.items():
        held = file.tensors[name].shape if name in file.tensors else None
        if held != shape:
            raise CheckpointError(
                f'{file.path}: metadata asks for {name} {list(shape)}, '
                f'the file holds {"none" if held is None else list(held)}'
            )


def _rope(file: GgufFile, fields: dict[str, Any]) -> Rope:
    theta = fields.pop('rope.freq_base', 10000.0)
    kind = fields.pop('rope.scaling.type', 'none')
    if ROPE_DIVISORS in file.tensors:
        return Rope(theta, 'divisors', divisors=tuple(read_tensor(file, ROPE_DIVISORS).tolist()))
    if kind == 'linear':
        return Rope(theta, 'linear', factor=fields.pop('rope.scaling.factor', 1.0))
    if kind != 'none':
        raise ValueError(f"LlamaConfig: rope.scaling.type {kind!r} is not supported, only 'linear'")
    return Rope(theta)


def gguf_tensors(file: GgufFile, config: LlamaConfig) -> Tensors:
    """The tensors by their GGUF names, dequantised as they are read, in Hugging Face's order."""
    # Block formats hold floats by construction; only plain integers are not weights.
    headers = {
        name: Header(tensor.shape, tensor.kind.name, not re.fullmatch(r'I\d+', tensor.kind.name))
        for name, tensor in file.tensors.items()
    }
    permuted = file.metadata['general.architecture'] == 'llama'

    def in_order(name: str, rows: np.ndarray) -> np.ndarray:
        rotated = re.fullmatch(r'blk\.\d+\.attn_([qk])\.(weight|bias)', name)
        if rotated is None or not permuted:
            return rows
        heads = config.num_attention_heads if rotated[1] == 'q' else config.num_key_value_heads
        return unpermute(rows, heads)

    def packed(name: str) -> Packed | None:
        found = read_packed(file, name)
        if found is None:
            return None
        scheme, arrays = found
        return scheme, {part: in_order(name, rows) for part, rows in arrays.items()}

    return Tensors(
        str(file.path), headers, lambda name: in_order(name, read_tensor(file, name)), packed
    )


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection from llama.cpp's order to Hugging Face's.

    Within each head llama.cpp rotates the pairs (x[0], x[1]), (x[2], x[3]), ...; Hugging Face
    rotates the pairs (x[i], x[i + H/2]).

    Example:
        >>> unpermute(np.arange(8), heads=2).tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection in llama.cpp's order; undoes `unpermute`.

    Example:
        >>> permute(unpermute(np.arange(8), heads=2), heads=2).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
