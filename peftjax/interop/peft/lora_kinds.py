"""Kinds of LoRA that files hold, as LoRA: PiSSA, OLoRA, KaSA, frozen first factors, biases."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Entry
from peftjax.core.quantized import dense
from peftjax.core.transform import PeftTransform
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Arrays, Found
from peftjax.interop.peft.names import sliced

Chosen = dict[str, tuple[int, float]]
"""Rank and alpha by leaf."""

# Starts that change the base by numbers that the base alone does not give.
_ELSEWHERE = ('pissa_niter', 'corda', 'loftq', 'lora_ga')


def start_of(found: Found, modules: Mapping[str, Arrays], variants: Collection[str]) -> str | None:
    """The start that took a part of the weights away, if `lora` can take the same part.

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
            f'{config.where}: init_lora_weights is {start!r}: the adapter goes with a base '
            'that its start has changed; convert it to plain LoRA where it was trained'
        )
    if start not in ('pissa', 'olora'):
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


def truncated(found: Found, modules: dict[str, Arrays], scales: Mapping[str, float]) -> None:
    """KaSA as LoRA of twice the rank: its base lacks the smallest singular terms of the weight.

    With `W = U S V^T` in [out, in] and the last `r` terms `D`, `W' = W - D + s B diag(d) A`. The
    second half of the factors is `D`.

    Raises:
        CheckpointError: a module without its diagonal, or with a rank that leaves no term.
    """
    found.linear_alone(modules)
    diagonals = found.take({'d': '.lora_diag'})
    for module, arrays in modules.items():
        place = found.place(module)
        path, rank = place.slot.path, arrays['a'].shape[-1]
        leaf = dense(paths.flatten(found.model.params)[path])
        matrix = np.asarray(found.layout(path).to_matrix(leaf), np.float32)
        one = matrix.reshape(-1, *matrix.shape[-2:])[place.number]
        if module not in diagonals or diagonals[module]['d'].shape != (rank,):
            raise CheckpointError(f'{found.where} lacks {module}.lora_diag of [{rank}]')
        if rank >= min(one.shape):
            raise CheckpointError(
                f'{found.where}: KaSA of rank {rank} leaves nothing of {path!r} {one.shape}'
            )
        left, values, right = np.linalg.svd(one, full_matrices=False)
        least, most = left[:, -rank:] * values[-rank:], right[-rank:]
        arrays['a'] = np.concatenate([arrays['a'] * diagonals[module]['d'], least], 1)
        arrays['b'] = np.concatenate([arrays['b'], -most / np.float32(scales[path])], 0)


def as_matrices(found: Found) -> None:
    """Factors of blocks (BD-LoRA) as matrices with zeros around the blocks.

    Of `n` blocks the file has, below each other, `[rows / n, columns / n]` each.

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
                wide = _columns(found, module, factor)
                value = found.tensors[name]
                if value.ndim != 2 or len(value) % count or value.shape[1] * count != wide:
                    raise CheckpointError(
                        f'{found.where}: {name} {value.shape} is not made of {count} blocks that '
                        f'are {wide} wide'
                    )
                found.tensors[name] = _diagonal(value.reshape(count, -1, value.shape[1]))


def _columns(found: Found, module: str, factor: str) -> int:
    """How many columns a whole factor has: the inputs of the layer, or the rank."""
    place = found.names.place_of_module(module)
    if place is None or f'{module}.lora_A.weight' not in found.tensors:
        raise CheckpointError(f'{found.where} has one factor of {module}, or it is no layer')
    inputs = found.layout(place.slot.path).inputs
    return inputs if factor == 'A' else len(found.tensors[f'{module}.lora_A.weight'])


def _diagonal(blocks: np.ndarray) -> np.ndarray:
    """`[n, rows, columns]` as `[n rows, n columns]`."""
    count, rows, columns = blocks.shape
    matrix = np.zeros((count, rows, count, columns), blocks.dtype)
    matrix[np.arange(count), :, np.arange(count)] = blocks
    return matrix.reshape(count * rows, count * columns)


def add_biases(found: Found, modules: dict[str, Arrays], scales: Mapping[str, float]) -> None:
    """Puts LoRA's own biases into the biases of its modules, which then train whole.

    Raises:
        CheckpointError: a module without a bias.
    """
    leaves = paths.flatten(found.model.params)
    for module, arrays in modules.items():
        if 'bias' not in arrays:
            raise CheckpointError(f'{found.where} lacks {module}.lora_B.bias')
        place = found.names.place(f'{module}.bias')
        if place is None:
            raise CheckpointError(
                f'{found.where}: lora_bias at {module}, which has no bias; here it is added to one'
            )
        name = f'{module}.base_layer.bias'
        mine = sliced(place.slot, leaves[place.slot.path], place.number)
        own = arrays.pop('bias') * np.float32(scales[found.place(module).slot.path])
        theirs = np.asarray(found.tensors.get(name, mine), np.float32)
        if own.shape != theirs.shape:
            raise CheckpointError(
                f'{found.where}: {module}.lora_B.bias is {own.shape}, needs {theirs.shape}'
            )
        found.tensors[name] = theirs + own


def whole_factors(
    model: Any, part: PeftTransform, entries: Mapping[str, Entry]
) -> tuple[Mapping[str, Entry], bool]:
    """Both factors of each leaf, and whether there are twice as many as were trained.

    Frozen first factors are put beside the second. Of a start that took `s A0 B0` away from the
    weights, `W - s A0 B0 + s A B` is LoRA on `W` with the factors `[A, A0]` and `[B, -B0]`.
    """
    if part.rest is not None:
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
