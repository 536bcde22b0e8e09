"""Kinds of LoRA that files hold: PiSSA, OLoRA, blocks of factors, frozen factors, biases."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from peftjax.core.entries import Entry
from peftjax.core.transform import PeftTransform
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Arrays, Found
from peftjax.methods.low_rank.lora_init import FROM_WEIGHT

Chosen = dict[str, tuple[int, float]]
"""Rank and alpha by leaf."""

# Starts that change the base by numbers that cannot be computed from the base alone.
_ELSEWHERE = ('pissa_niter', 'corda', 'loftq', 'lora_ga')


def start_of(found: Found, modules: Mapping[str, Arrays], variants: Collection[str]) -> str | None:
    """The start that subtracted a part of the weights, if `lora` can subtract the same part.

    Raises:
        CheckpointError: a start that changed the base, and that cannot be repeated from the base.
    """
    config = found.config
    start = config.get('init_lora_weights')
    if not isinstance(start, str):
        return None
    start = start.lower()
    if start.startswith(_ELSEWHERE):
        raise CheckpointError(
            f'{config.where}: init_lora_weights is {start!r}: the adapter belongs to a base '
            'that its start has changed; convert it to plain LoRA where it was trained'
        )
    if start not in FROM_WEIGHT:
        return None
    if variants:
        raise CheckpointError(
            f'{config.where}: {" with ".join(variants)} with {start!r} is not built here'
        )
    found.linear_alone(modules)
    turned = [m for m in modules if not found.place(m).slot.transposed]
    if start == 'olora' and turned:
        raise CheckpointError(
            f'{config.where}: init_lora_weights is {start!r} at {turned[0]}, whose weight the '
            'library decomposes the other way round'
        )
    return start


def doubled(alpha: float, rslora: bool) -> float:
    """The alpha that keeps the scale at twice the rank."""
    return alpha * (math.sqrt(2) if rslora else 2)


def as_matrices(found: Found) -> None:
    """Factors of blocks (BD-LoRA) as matrices with zeros around the blocks.

    The file has the `n` blocks below each other, each `[rows / n, columns / n]`.

    Raises:
        CheckpointError: an unknown field, or a factor that has no such blocks.
    """
    config = found.config
    said = config['use_bdlora']
    known = {'nblocks', 'match_strict', 'target_modules_bd_a', 'target_modules_bd_b'}
    if not isinstance(said, dict) or set(said) - known:
        raise CheckpointError(f'{config.where}: use_bdlora is {str(said)[:80]!r}')
    count = said.get('nblocks')
    if type(count) is not int or count < 1:
        raise CheckpointError(f'{config.where}: use_bdlora has nblocks {str(count)[:40]!r}')
    for factor in 'AB':
        patterns = said.get(f'target_modules_bd_{factor.lower()}') or []
        ending = f'.lora_{factor}.weight'
        for name in [name for name in found.tensors if name.endswith(ending)]:
            module = name.removesuffix(ending)
            if any(str(pattern) in module.rpartition('.')[2] for pattern in patterns):
                rows, wide = _shape(found, module, factor)
                value = found.tensors[name]
                held = value.ndim == 2 and (len(value), value.shape[1] * count) == (rows, wide)
                if not held or rows % count:
                    raise CheckpointError(
                        f'{found.where}: {name} {value.shape} is not made of {count} blocks of a '
                        f'factor of {(rows, wide)}'
                    )
                found.tensors[name] = _diagonal(value.reshape(count, -1, value.shape[1]))


def _shape(found: Found, module: str, factor: str) -> tuple[int, int]:
    """Rows and columns of a whole factor, before anything of that size is made."""
    place = found.names.place_of_module(module)
    first = found.tensors.get(f'{module}.lora_A.weight')
    if place is None or first is None:
        raise CheckpointError(f'{found.where} has one factor of {module}, or it is no layer')
    layout, rank = found.layout(place.slot.path), len(first)
    if rank > min(layout.inputs, layout.outputs):
        raise CheckpointError(
            f'{found.where}: {module} has factors of blocks of rank {rank}, but its matrix is '
            f'[{layout.outputs}, {layout.inputs}]; blocks of a rank up to its smaller side are read'
        )
    return (rank, layout.inputs) if factor == 'A' else (layout.outputs, rank)


def _diagonal(blocks: np.ndarray) -> np.ndarray:
    """`[n, rows, columns]` as `[n rows, n columns]`."""
    count, rows, columns = blocks.shape
    matrix = np.zeros((count, rows, count, columns), blocks.dtype)
    matrix[np.arange(count), :, np.arange(count)] = blocks
    return matrix.reshape(count * rows, count * columns)


def named_biases(found: Found, modules: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """LoRA's own biases by the names that `lora` gives them: 'shift' beside a layer without one."""
    return {
        module: arrays
        if found.names.place(f'{module}.bias') is not None
        else {'shift' if name == 'bias' else name: each for name, each in arrays.items()}
        for module, arrays in modules.items()
    }


def whole_factors(
    model: Any, part: PeftTransform, entries: Mapping[str, Entry]
) -> tuple[Mapping[str, Entry], bool]:
    """Both factors of each leaf, and whether their rank is twice the trained one.

    A frozen first factor is put beside the second. If the start subtracted `s A0 B0` from the
    weights, `W - s A0 B0 + s A B` is LoRA on `W` with the factors `[A, A0]` and `[B, -B0]`.
    """
    if any(entry.method in FROM_WEIGHT for entry in entries.values()):
        start = part.start(jax.random.key(0), model)
        pairs = {path: (entry, start[path]) for path, entry in entries.items()}
        return {
            path: entry.replace(
                a=np.concatenate([entry['a'], first['a']], -1),
                b=np.concatenate([entry['b'], -first['b']], -2),
            )
            for path, (entry, first) in pairs.items()
        }, True
    if all('a' in entry for entry in entries.values()):
        return entries, False
    own = part.own(model)
    return {path: entry.replace(a=own[path]['a']) for path, entry in entries.items()}, False
