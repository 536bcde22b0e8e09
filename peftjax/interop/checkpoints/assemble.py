"""Fills the leaves of a model from the tensors of a checkpoint, strictly."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from peftjax.interop.errors import CheckpointError
from peftjax.interop.files import finite
from peftjax.interop.files.tensors import Header, Tensors
from peftjax.models.config_fields import NO_SIZES
from peftjax.models.names import Slot
from peftjax.models.registry import Family


def strip_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The same tensors under the names of a bare backbone: 'bert.x' and 'x' both become 'x'.

    Layer norms of checkpoints converted from TensorFlow call weight and bias gamma and beta; they
    are renamed as well.

    Raises:
        CheckpointError: a file that holds a tensor under two such names.
    """
    original: dict[str, str] = {}
    for name in tensors.headers:
        bare = name.removeprefix(prefix)
        bare = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', bare)
        bare = re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', bare)
        if bare in original:
            raise CheckpointError(f'{tensors.where} holds both {original[bare]} and {name}')
        original[bare] = name
    return Tensors(
        tensors.where,
        {bare: tensors.headers[name] for bare, name in original.items()},
        lambda bare: tensors.read(original[bare]),
        lambda bare: tensors.packed(original[bare]),
    )


def new_leaves(
    slots: Sequence[Slot], headers: Mapping[str, Header], family: Family
) -> frozenset[str]:
    """Paths of the head's leaves, if the checkpoint holds no tensor of the head at all."""
    of_head = [slot for slot in slots if family.of_head(slot.path)]
    held = any(name in headers for slot in of_head for name in slot.names)
    return frozenset() if held else frozenset(slot.path for slot in of_head)


def check(slots: Sequence[Slot], tensors: Tensors, surplus: Collection[str]) -> None:
    """Compares what the model needs with what the checkpoint holds.

    surplus: regexes of tensors that may be there without being needed.

    Raises:
        CheckpointError: once, listing every missing, misshapen and unknown tensor.
    """
    problems, needed = [], set()
    for slot in slots:
        for name in slot.names:
            needed.add(name)
            header = tensors.headers.get(name)
            if header is None:
                problems.append(f'missing: {name} {list(slot.shape)} for {slot.path}')
            elif header.shape != slot.shape or not header.floating:
                problems.append(
                    f'wrong: {name} is {header.dtype} {list(header.shape)}, '
                    f'{slot.path} needs floats {list(slot.shape)}'
                )
    for name in sorted(set(tensors.headers) - needed):
        if not any(re.fullmatch(pattern, name) for pattern in surplus):
            header = tensors.headers[name]
            problems.append(f'unknown: {name} {header.dtype} {list(header.shape)}')
    if problems:
        raise CheckpointError(
            f'{tensors.where} does not fit its config, {len(problems)} tensors '
            f'(pass ignore=(regex,) for unknown ones that may be dropped):\n  '
            + '\n  '.join(problems)
        )


def check_sizes(config: Any, tensors: Tensors) -> None:
    """Compares the sizes in a config with the files, before any becomes the size of an array.

    Raises:
        CheckpointError: a size above 65,536 and above the count of all numbers in the files.
    """
    held = sum(math.prod(header.shape) for header in tensors.headers.values())
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) is int and field.name not in NO_SIZES and value > max(held, 2**16):
            raise CheckpointError(
                f'{tensors.where}: config says {field.name} is {value}, but the files hold {held} '
                'numbers in all'
            )


def fill(slot: Slot, tensors: Tensors, dtype: jnp.dtype, where: Sharding | None) -> jax.Array:
    """One leaf: its tensors read one by one, transposed, stacked and cast, and placed `where`.

    Raises:
        CheckpointError: a number that the dtype does not hold.
    """
    shape = tuple(reversed(slot.shape)) if slot.transposed else slot.shape
    buffer = np.empty((len(slot.names), *shape), dtype)
    for index, name in enumerate(slot.names):
        values = tensors.read(name)
        with np.errstate(over='ignore'):  # `check_cast` finds an overflow and names the tensor.
            buffer[index] = values.T if slot.transposed else values
        finite.check_cast(tensors.where, name, values, buffer[index])
    values = buffer if slot.stacked else buffer[0]
    return jnp.asarray(values) if where is None else jax.device_put(values, where)
