"""`export_gguf`: LoRA as a GGUF adapter, which llama.cpp loads beside a GGUF base."""

import errno
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import jax
import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Adapter, check_entries
from peftjax.core.model import Model
from peftjax.core.transform import PeftTransform
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files import whole
from peftjax.interop.gguf.files import LLAMA_GGUF_NAMES, permute
from peftjax.interop.gguf.format import open_gguf, read_tensor
from peftjax.interop.peft.names import sliced
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.names import slots


def export_gguf(
    path: str | os.PathLike[str],
    model: Model,
    transform: PeftTransform,
    adapter: Adapter,
    *,
    name: str = '',
) -> None:
    r"""Writes LoRA for llama.cpp (`--lora file.gguf`), whose bases are GGUF files.

    The file holds `lora_a = A^T: [rank, in]` and `lora_b = B^T: [out, rank]` of each matrix, the
    rows of `lora_b` for q and k in llama.cpp's rotary order where the base has that order, and one
    `alpha`. llama.cpp computes `W' = W + (alpha / rank) lora_b lora_a`. Where scales differ
    (`rank_pattern`, `alpha_pattern`, `rslora`), the ratio to `alpha / rank` is multiplied into
    `lora_b`.

    Args:
        path: path of the file, ending with `.gguf`. An older file is replaced when the new one is
            complete.
        model: a Llama, Mistral, Qwen2 or Qwen3 decoder of `peftjax.load`.
        transform, adapter: `lora` on matrices of the layers or on an untied head.
        name: the name of the adapter in the file.

    Raises:
        ValueError: another method or family, a lookup (llama.cpp transposes those), another
            ending.
        AdapterError: the adapter is of another transform.
        OSError: writing failed, for example on a full disk; an older file is unchanged.

    Example:
        >>> from peftjax.models.llama import Llama
        >>> config = LlamaConfig(
        ...     vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=4, num_key_value_heads=2, head_dim=4)
        >>> module, ids = Llama(config), jnp.ones((1, 4), int)
        >>> params = module.init(jax.random.key(0), ids)['params']
        >>> model = peftjax.wrap(module, params, ids, config=config)
        >>> tx = peftjax.lora(rank=2, targets=r'layers/self_attn/q_proj')
        >>> path = getfixture('tmp_path') / 'adapter.gguf'
        >>> adapter, _ = tx.init(jax.random.key(0), model)
        >>> peftjax.export_gguf(path, model, tx, adapter)
        >>> path.is_file()
        True
    """
    target, about = pathlib.Path(path), transform.about
    if target.suffix != '.gguf':
        raise ValueError(f'{target} does not end with .gguf')
    if not isinstance(model.config, LlamaConfig):
        raise ValueError(
            f'a GGUF adapter is written for Llama, Mistral, Qwen2 and Qwen3, not for a model with '
            f'a {type(model.config).__name__}'
        )
    start = about.arguments.get('init') if about else None
    unlike = about is None or about.name != 'lora' or about.arguments['bias']
    if about is None or unlike or start in ('pissa', 'olora'):
        raise ValueError(
            f'{transform!r} is not an adapter that llama.cpp has; write plain lora, or merge into '
            'a checkpoint with peftjax.save_checkpoint'
        )
    check_entries(adapter, 'lora', ('a', 'b'))
    tensors, alpha = _tensors(model, model.config, about.arguments, adapter)
    with whole.new_file(target) as new:
        _write(new, model.config, tensors, alpha, name)


def _write(
    path: pathlib.Path,
    config: LlamaConfig,
    tensors: Mapping[str, np.ndarray],
    alpha: float,
    name: str,
) -> None:
    writer = gguf.GGUFWriter(path, _architecture(config))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, 'lora')
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    if name:
        writer.add_name(name)
    for tensor, value in tensors.items():
        writer.add_tensor(tensor, np.ascontiguousarray(value))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    # The writer does not report a full disk.
    try:
        stored = open_gguf(path)
        same = set(stored.tensors) == set(tensors) and all(
            whole.same_bytes(read_tensor(stored, tensor), np.ascontiguousarray(value))
            for tensor, value in tensors.items()
        )
    except CheckpointError as error:
        raise OSError(errno.ENOSPC, f'was not written whole: {error}', str(path)) from error
    if not same:
        raise OSError(errno.EIO, 'has other numbers than were written to it', str(path))


def _architecture(config: LlamaConfig) -> str:
    """llama.cpp's name, which its loader compares with the base's."""
    if config.qk_norm:
        return 'qwen3'
    return 'qwen2' if config.qkv_bias and not config.o_bias else 'llama'


def _tensors(
    model: Model, config: LlamaConfig, arguments: Mapping[str, Any], entries: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], float]:
    leaves = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in paths.flatten(model.params).items()
        if path in entries
    }
    alpha = float(arguments['rank'] if arguments['alpha'] is None else arguments['alpha'])
    rotated = {'q_proj': config.num_attention_heads, 'k_proj': config.num_key_value_heads}
    tensors = {}
    for slot in slots(LLAMA_GGUF_NAMES, leaves):
        entry = entries[slot.path]
        if entry.layout.lookup:
            raise ValueError(
                f'{slot.path!r} is a lookup, but a GGUF adapter holds matrices; leave it out'
            )
        rank = entry['a'].shape[-1]
        default = rank if arguments['alpha'] is None else alpha
        here = paths.first_match(arguments['alpha_pattern'], slot.path, default)
        scale = here / (rank**0.5 if arguments['rslora'] else rank)
        heads = rotated.get(slot.path.split('/')[-2])
        for index, tensor in enumerate(slot.names):
            a, b = (np.asarray(sliced(slot, entry[each], index), np.float32).T for each in 'ab')
            if heads is not None and _architecture(config) == 'llama':
                b = permute(b, heads)
            tensors[f'{tensor}.lora_a'] = a
            tensors[f'{tensor}.lora_b'] = b * np.float32(scale * rank / alpha)
    return tensors, alpha
