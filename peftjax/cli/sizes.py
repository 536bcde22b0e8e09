"""Models by number of parameters: '7B' is a Llama of about that size."""

import math
import pathlib
import re
from typing import Any

_UNITS = {'M': 1e6, 'B': 1e9, 'T': 1e12}
# vocabulary, width, inner width, layers, heads, heads of keys, whether the head is the embedding
_SHAPES = (
    (49152, 576, 1536, 30, 9, 3, True),  # SmolLM2 135M
    (49152, 960, 2560, 32, 15, 5, True),  # SmolLM2 360M
    (32000, 2048, 5632, 22, 32, 4, False),  # TinyLlama 1.1B
    (128256, 3072, 8192, 28, 24, 8, True),  # Llama 3.2 3B
    (32000, 4096, 11008, 32, 32, 32, False),  # LLaMA 7B
    (128256, 4096, 14336, 32, 32, 8, False),  # Llama 3 8B
    (32000, 5120, 13824, 40, 40, 40, False),  # LLaMA 13B
    (32000, 6656, 17920, 60, 52, 52, False),  # LLaMA 33B
    (32000, 8192, 28672, 80, 64, 8, False),  # Llama 2 70B
    (128256, 16384, 53248, 126, 128, 8, False),  # Llama 3.1 405B
)
_NAMES = (
    *('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers'),
    *('num_attention_heads', 'num_key_value_heads', 'tie_word_embeddings'),
)


def read_size(text: str) -> float | None:
    """The number that '7B', '135M' or '1.5T' stands for; None for any other text.

    None also if a file or folder has that name.

    Example:
        >>> read_size('1.5B'), read_size('org/name')
        (1500000000.0, None)
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([MBT])', text)
    if match is None or pathlib.Path(text).exists():
        return None
    return float(match[1]) * _UNITS[match[2]]


def llama_of(parameters: float, length: int) -> dict[str, Any]:
    """The config.json of a Llama with about this number of parameters.

    It has the shape of the published checkpoint of the nearest size, with another number of layers
    if that checkpoint is off by more than a tenth.

    Args:
        parameters: how many.
        length: tokens in the longest example.

    Raises:
        ValueError: fewer parameters than a Llama of one layer has.

    Example:
        >>> llama_of(7e9, 2048)['num_hidden_layers'], llama_of(5e9, 2048)['num_hidden_layers']
        (32, 23)
    """
    shapes = [dict(zip(_NAMES, shape, strict=True)) for shape in _SHAPES]
    config = min(shapes, key=lambda each: abs(math.log(count(each) / parameters)))
    if abs(count(config) / parameters - 1) > 0.1:
        outside = count(config | {'num_hidden_layers': 0})
        layer = count(config | {'num_hidden_layers': 1}) - outside
        config['num_hidden_layers'] = round((parameters - outside) / layer)
    if config['num_hidden_layers'] < 1:
        raise ValueError(
            f'{parameters / 1e6:g}M parameters are too few for a Llama; name a checkpoint, or '
            'write 100M or more'
        )
    return config | {'model_type': 'llama', 'max_position_embeddings': length}


def count(config: dict[str, Any]) -> int:
    """The number of parameters of a Llama with this config."""
    width, inner = config['hidden_size'], config['intermediate_size']
    shared = width * config['num_key_value_heads'] // config['num_attention_heads']
    layer = 2 * width * width + 2 * width * shared + 3 * width * inner + 2 * width
    tables = 1 if config['tie_word_embeddings'] else 2
    return config['num_hidden_layers'] * layer + tables * config['vocab_size'] * width + width
