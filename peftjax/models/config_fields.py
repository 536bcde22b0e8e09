"""Strict reading of a checkpoint's config.json into a frozen dataclass."""

import dataclasses
import re
import typing
from collections.abc import Collection, Mapping
from typing import Any

# Fields that do not change the outputs of a trained model.
HARMLESS = frozenset(
    {
        '_name_or_path',
        '_attn_implementation',
        'architectures',
        'auto_map',
        'model_type',
        'transformers_version',
        'torch_dtype',
        'dtype',
        'torchscript',
        'use_cache',
        'gradient_checkpointing',
        'initializer_range',
        'return_dict',
        'output_attentions',
        'output_hidden_states',
        'bos_token_id',
        'eos_token_id',
        'pad_token_id',
        'sep_token_id',
        'cls_token_id',
        'decoder_start_token_id',
        'id2label',
        'label2id',
        'num_labels',
        'problem_type',
        'finetuning_task',
        'task_specific_params',
        'tokenizer_class',
        'prefix',
        'chunk_size_feed_forward',
        'is_llama_config',
        'transformers.js_config',
        'pretraining_tp',
    }
)

# Fields that change the outputs in unsupported ways, with the values that turn them off.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    'quantization_config': (None,),
    'pruned_heads': ({}, None),
    'is_encoder_decoder': (False,),
    'is_decoder': (False,),
    'add_cross_attention': (False,),
}


# Numbers that are not the size of an array, and may be large.
NO_SIZES = frozenset(
    {
        *('max_position_embeddings', 'sliding_window', 'relative_attention_max_distance'),
        *('pad_token_id', 'image_size'),
    }
)
_LAYERS = re.compile(r'(num_)?(\w+_)?(hidden_)?layers?')
_MOST_LAYERS, _MOST_PIXELS, _MOST_ROWS, _MOST = 4096, 4096, 2**28, 2**22


def greatest(name: str) -> int:
    """The greatest allowed value of a whole-number field, far above that of any model.

    Example:
        >>> greatest('num_hidden_layers'), greatest('hidden_size')
        (4096, 4194304)
    """
    if _LAYERS.fullmatch(name):
        return _MOST_LAYERS
    if name == 'image_size':
        return _MOST_PIXELS
    if name == 'vocab_size':
        return _MOST_ROWS
    return 2**31 - 1 if name in NO_SIZES else _MOST


def _greatest_float(name: str) -> float:
    """1 for a rate of dropout; else above all numbers in use, and finite when squared."""
    return 1.0 if 'drop' in name else 1e18


def read_config(
    cls: type,
    raw: Mapping[str, Any],
    *,
    off: Mapping[str, tuple[Any, ...]],
    harmless: Collection[str] = (),
    ignore: Collection[str] = (),
) -> Any:
    """Builds the dataclass `cls` from the fields of the same names in `raw`.

    off: fields that must be absent or have one of the listed values. harmless: fields to drop in
    addition to the common ones. ignore: regexes of more fields that the user accepts.

    Raises:
        ValueError: fields are missing, mistyped, unsupported or unknown; the message names them
            all.
    """
    hints = typing.get_type_hints(cls)
    values, problems = {}, []
    for field in dataclasses.fields(cls):
        if field.name not in raw:
            if field.default is dataclasses.MISSING:
                problems.append(f'{field.name}: missing')
            continue
        value = raw[field.name]
        hint = hints[field.name]
        if not _has_type(value, hint):
            problems.append(
                f'{field.name}: {value!r} is not of type {getattr(hint, "__name__", hint)}'
            )
        elif _has_type(0.0, hint):
            most = _greatest_float(field.name)
            if isinstance(value, int | float) and not 0 <= value <= most:
                problems.append(f'{field.name}: {str(value)[:40]} is out of range, 0 to {most}')
            else:
                values[field.name] = value
        elif type(value) is int and value < 1:
            problems.append(f'{field.name}: {value} is out of range')
        elif type(value) is int and value > greatest(field.name):
            most = greatest(field.name)
            problems.append(f'{field.name}: {str(value)[:40]} is out of range, above {most}')
        else:
            values[field.name] = value
    off = UNSUPPORTED | dict(off)
    for name in sorted(set(raw) - {field.name for field in dataclasses.fields(cls)}):
        if name in off:
            if raw[name] not in off[name]:
                problems.append(f'{name}: {raw[name]!r} is not supported, only {off[name][0]!r}')
        elif name not in HARMLESS and name not in harmless and not _matches(name, ignore):
            problems.append(
                f'{name}: unknown; if it does not change what the model computes, '
                f'pass ignore=({name!r},)'
            )
    if problems:
        raise ValueError(f'{cls.__name__}: ' + '; '.join(problems))
    return cls(**values)


def _has_type(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) and hint is not bool:
        return False
    # Of tuple[bool, ...] only the tuple: no file can hold one, so a parser of ours has made it.
    hint = tuple if typing.get_origin(hint) is tuple else hint
    if isinstance(value, int) and isinstance(0.0, hint):
        return True  # JSON writes 10000 for 10000.0
    return isinstance(value, hint)


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
