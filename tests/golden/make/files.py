"""Golden folders: what is drawn for them, and how numbers are stored or checked."""

import re
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parents[1]
Arrays = dict[str, np.ndarray]
# Of float32 sums on another machine, beside the largest number of an array.
TOLERANCE = 1e-4


def run(make: Callable[[Path], dict[str, Arrays]], folders: Iterable[Path]) -> None:
    """Writes or checks what `make(folder)` returns, `{file: arrays}`, as the command line asks."""
    check = '--check' in sys.argv
    chosen = [Path(each).resolve() for each in sys.argv[1:] if each != '--check']
    errors = []
    for folder in folders:
        if chosen and folder.resolve() not in chosen:
            continue
        for name, arrays in make(folder).items():
            if check:
                errors.append(_error(arrays, read(folder / name)))
                print(f'{folder.relative_to(GOLDEN)}/{name}: {errors[-1]:.1e}', flush=True)
            else:
                write(folder / name, arrays)
    if check:
        wrong = sum(not error <= TOLERANCE for error in errors)
        print(f'{len(errors)} files checked, {wrong} differ')
        sys.exit(1 if wrong else 0)


def _error(found: Arrays, stored: Arrays) -> float:
    """Of what is computed, the largest, relative to an array's largest number; inf if one lacks."""
    if missing := sorted(set(found) - set(stored)):
        print(f'not stored: {missing}')
        return np.inf
    differences = {
        name: np.abs(value - stored[name]).max() / max(np.abs(stored[name]).max(), 1e-2)
        for name, value in found.items()
        if value.dtype.kind != 'U'
    }
    return float(max(differences.values(), default=0.0))


def read(path: Path) -> Arrays:
    if path.suffix == '.safetensors':
        return load_file(path)
    with np.load(path) as file:
        return dict(file)


def write(path: Path, arrays: Arrays) -> None:
    if path.suffix == '.safetensors':
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)
    else:
        np.savez_compressed(path, **arrays)


def bases() -> list[Path]:
    return sorted(path.parent for path in GOLDEN.glob('*/base/config.json'))


def class_of(folder: Path) -> type:
    """The class of transformers that the config of a base names."""
    return getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])


def base_of(folder: Path) -> torch.nn.Module:
    """The base that stands beside an adapter, or, of AdapterHub's, in the folder of its name."""
    near = folder.parent / 'base'
    base = near if near.is_dir() else GOLDEN / folder.parent.name / 'base'
    return class_of(base).from_pretrained(base, attn_implementation='eager').eval()


def inputs_of(folder: Path) -> dict[str, torch.Tensor]:
    """A case's own inputs and labels, or those of its base."""
    places = (folder, folder.parent / 'base', GOLDEN / folder.parent.name / 'base')
    path = next(place / 'inputs.npz' for place in places if (place / 'inputs.npz').is_file())
    return {
        name: torch.from_numpy(value if value.dtype.kind == 'f' else value.astype(np.int64))
        for name, value in read(path).items()
    }


def draw(folder: Path, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
    """Values that differ from every start, of a seed that is the folder's."""
    torch.manual_seed(zlib.crc32(folder.relative_to(GOLDEN).as_posix().encode()))
    for name, parameter in parameters:
        # Norms and biases too: at their initial ones and zeros they would test nothing.
        centre = 1.0 if re.search(r'(?i)((norm|ln_\w)\.weight|ia3_l.*)$', name) else 0.0
        torch.nn.init.normal_(parameter, centre, 0.3)
