"""Checkpoint folders in Hugging Face layout: config.json and safetensors, sharded or not."""

import pathlib
from typing import Any

import safetensors

from peftjax.interop.errors import CheckpointError
from peftjax.interop.files.bounded_json import read_object
from peftjax.interop.files.tensors import Header, Tensors

_SINGLE, _INDEX = 'model.safetensors', 'model.safetensors.index.json'


def has_weights(folder: pathlib.Path) -> bool:
    """Whether there are weights that `open_folder` would open."""
    return any((folder / name).is_file() for name in (_SINGLE, _INDEX))


def open_folder(folder: pathlib.Path) -> Tensors:
    """The tensors of `model.safetensors`, or of the shards its index file lists.

    The files are memory-mapped: opening reads headers only, and `read` copies one tensor.

    Raises:
        CheckpointError: no such files, a corrupt or truncated file (the header's sizes are checked
            against the file's), a shard outside the folder, a tensor in two shards or in none.
    """
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file():
        claims, files = {}, [single.name]
    elif index.is_file():
        claims = _shards(index)
        files = sorted(set(claims.values()))
    else:
        raise CheckpointError(
            f'{folder} holds neither {single.name} nor {index.name}: only safetensors are read, '
            'pickled weights (*.bin, *.pt) never'
        )
    headers: dict[str, Header] = {}
    handles: dict[str, Any] = {}
    for file in files:
        handle = _open(folder / file)
        for name in handle.keys():  # noqa: SIM118 (not a dict: it cannot be iterated)
            if name in handles:
                raise CheckpointError(f'{folder}: tensor {name} is in two shards, one is {file}')
            if claims.get(name, file) != file:
                raise CheckpointError(f'{index}: {name} is in {file}, not in {claims[name]}')
            header = handle.get_slice(name)
            dtype = header.get_dtype()
            headers[name] = Header(tuple(header.get_shape()), dtype, dtype in _FLOATING)
            handles[name] = handle
    absent = sorted(set(claims) - set(handles))
    if absent:
        raise CheckpointError(f'{index} lists tensors that no shard holds: {", ".join(absent)}')
    return Tensors(str(folder), headers, lambda name: handles[name].get_tensor(name))


def open_file(path: pathlib.Path) -> Tensors:
    """The tensors of one file.

    Raises:
        CheckpointError: it is absent, corrupt or truncated.
    """
    handle = _open(path)
    headers = {}
    for name in handle.keys():  # noqa: SIM118 (not a dict: it cannot be iterated)
        header = handle.get_slice(name)
        dtype = header.get_dtype()
        headers[name] = Header(tuple(header.get_shape()), dtype, dtype in _FLOATING)
    return Tensors(str(path), headers, handle.get_tensor)


def _open(path: pathlib.Path) -> Any:
    try:
        return safetensors.safe_open(path, framework='numpy')
    except FileNotFoundError:
        raise CheckpointError(f'{path} does not exist') from None
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f'{path} is corrupt or truncated ({path.stat().st_size} bytes): {error}'
        ) from error


def _shards(index: pathlib.Path) -> dict[str, str]:
    claims = read_object(index).get('weight_map')
    if not isinstance(claims, dict) or not claims:
        raise CheckpointError(f'{index} has no weight_map')
    for name, file in claims.items():
        # Compared as text: a download cache links its files to places outside the folder.
        plain = isinstance(file, str) and pathlib.PurePath(file).name == file
        if not plain or '\\' in file or not file.endswith('.safetensors'):
            raise CheckpointError(
                f'{index}: {name} is said to be in {file!r}; only .safetensors files next to the '
                'index are read'
            )
    return claims


# Narrower floats exist in the format, but stand for quantised weights that need scales beside them.
_FLOATING = frozenset({'F64', 'F32', 'F16', 'BF16'})
