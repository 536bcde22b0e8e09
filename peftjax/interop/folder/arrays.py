"""Arrays of any dtype in safetensors files, and whether two arrays are the same."""

import hashlib
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core import paths
from peftjax.core.quantized import QuantizedArray, is_quantized
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files import finite, whole
from peftjax.interop.files.safetensors_files import open_file

_NATIVE = frozenset({
    *('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
    *('float16', 'bfloat16', 'float32', 'float64'),
})  # fmt: skip
_HELD_AS = {
    **{'complex64': 'float32', 'complex128': 'float64'},  # pairs
    **dict.fromkeys(
        ('int2', 'int4', 'uint2', 'uint4', 'float8_e3m4', 'float8_e4m3', 'float8_e4m3b11fnuz'),
        'uint8',
    ),
    **dict.fromkeys(
        ('float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz', 'float8_e8m0fnu'),
        'uint8',
    ),
}
"""How dtypes that readers of safetensors lack are written: as pairs, or as bytes."""

DTYPES = _NATIVE | set(_HELD_AS)
SAMPLE = 4096


def host(leaf: Any) -> np.ndarray:
    """`leaf` as an array of numbers on the host, a random key by its data.

    Raises:
        TypeError: a leaf that has a shape but no numbers.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(f'a leaf is {leaf!r}, of shape alone; save and restore take real arrays')
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def same(one: Any, other: Any) -> bool:
    """Whether two leaves, or holes, have the same type, shape and bits."""
    if one is other:
        return True
    if is_quantized(one) or is_quantized(other):
        if jax.tree.structure(one) != jax.tree.structure(other):
            return False
        return all(map(same, jax.tree.leaves(one), jax.tree.leaves(other)))
    if not (hasattr(one, '__array__') and hasattr(other, '__array__')):
        return type(one) is type(other) and one == other  # Holes, plain numbers.
    first, second = host(one), host(other)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return np.array_equal(_bytes(first), _bytes(second))


def _bytes(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def sample(leaf: Any, count: int = SAMPLE) -> np.ndarray:
    """At most `count` numbers of a leaf, spread over it; the same places for the same shape."""
    size = int(np.prod(leaf.shape))
    if size <= count or isinstance(leaf, jax.ShapeDtypeStruct):
        return host(leaf).reshape(-1)
    # Steps by the golden ratio: no row or column is favoured.
    spread = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(11)
    places = (spread.astype(np.float64) / 2.0**53 * size).astype(np.int64)
    places[0], places[-1] = 0, size - 1
    if isinstance(leaf, jax.Array) and {each.platform for each in leaf.devices()} == {'cpu'}:
        leaf = host(leaf)  # This makes no copy, and no program for each shape.
    return host(leaf[np.unravel_index(places, leaf.shape)])


def checksum(leaf: Any) -> int:
    """CRC-32 of the sample of a leaf; for a quantised leaf, of the samples of all its arrays."""
    arrays = leaf.arrays if isinstance(leaf, QuantizedArray) else {'': leaf}
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(_bytes(sample(_shaped(arrays[name]))).tobytes(), total)
    return total


def _shaped(leaf: Any) -> Any:
    return leaf if hasattr(leaf, 'shape') else np.asarray(leaf)


def write(path: pathlib.Path, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Writes arrays to one file.

    Returns:
        What `Stored` needs to know about the file: its SHA-256, and the dtypes that safetensors has
        no name for.

    Raises:
        ValueError: an array has a dtype that cannot be written (the error names the array).
    """
    tensors, dtypes = {}, {}
    for name, given in arrays.items():
        array = given if hasattr(given, 'dtype') else jnp.asarray(given)
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        value = host(array)
        dtype = value.dtype.name
        if is_key or dtype not in DTYPES or name == '__metadata__':
            raise ValueError(
                f'{name!r} is of {array.dtype}, which a file of tensors cannot hold; keep '
                'jax.random.key_data(key) in place of a key'
            )
        value = np.asarray(value, order='C')
        if dtype in _HELD_AS:
            dtypes[name] = dtype
            value = value[..., None].view(_HELD_AS[dtype])
        tensors[name] = value
    whole.write_tensors(path, tensors)
    return {'sha256': _digest(path), 'dtypes': dtypes}


def _digest(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


class Stored:
    """The arrays of one file that `write` made; each can be taken once, and all must be taken.

    Raises:
        CheckpointError: a file that is absent, corrupt, or not the one that `about` describes.
    """

    def __init__(self, path: pathlib.Path, about: Any):
        if not (isinstance(about, dict) and isinstance(about.get('dtypes'), dict)):
            raise CheckpointError(f'{path} is not described as a file of tensors')
        self._file = open_file(path)
        if _digest(path) != about.get('sha256'):
            raise CheckpointError(
                f'{path} is not the file that was saved beside its description: its SHA-256 '
                'differs. Was the folder written twice at once, or a file replaced?'
            )
        self._dtypes: dict[str, Any] = about['dtypes']
        self._left = set(self._file.headers)

    def refuse_non_finite(self, *prefixes: str) -> None:
        """From now on, refuses arrays that are not finite: all, or those with these prefixes."""
        names = [n for n in self._file.headers if not prefixes or n.startswith(prefixes)]
        self._file = finite.checked(self._file, names)

    @property
    def names(self) -> list[str]:
        """The names of the arrays that were not taken yet."""
        return sorted(self._left)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The array of that name.

        Raises:
            CheckpointError: the array does not exist, was taken before, or has another shape; it is
                not finite, and such arrays are refused.
        """
        where = self._file.where
        if name not in self._left:
            raise CheckpointError(
                f'{where} lacks the tensor {name!r}, or two places ask for it'
                f'{paths.nearby(name, self._left)}'
            )
        found = self._shape(name)
        if shape is not None and found != shape:
            raise CheckpointError(
                f'{where}: {name!r} is of shape {found}, but the transform makes {shape}'
            )
        self._left.discard(name)
        value, dtype = self._file.read(name), self._dtypes.get(name)
        return value if dtype is None else value.view(jnp.dtype(dtype)).reshape(found)

    def _shape(self, name: str) -> tuple[int, ...]:
        header, dtype = self._file.headers[name], self._dtypes.get(name)
        if dtype is None:
            return header.shape
        kind = _HELD_AS.get(dtype) if isinstance(dtype, str) else None
        last = jnp.dtype(dtype).itemsize // jnp.dtype(kind).itemsize if kind else -1
        names = {'float32': 'F32', 'float64': 'F64', 'uint8': 'U8'}
        if header.shape[-1:] != (last,) or header.dtype != names.get(str(kind)):
            raise CheckpointError(
                f'{self._file.where}: {name!r} is {header.dtype} {list(header.shape)}, which does '
                f'not hold {dtype!r}'
            )
        return header.shape[:-1]

    def check_all_taken(self) -> None:
        """Raises `CheckpointError` if any array was not taken."""
        if self._left:
            raise CheckpointError(
                f'{self._file.where} holds {len(self._left)} tensors that nothing here takes: '
                f'{", ".join(sorted(self._left)[:8])}'
            )


def on_device(name: str, value: np.ndarray) -> jax.Array:
    """`value` as an array of JAX, in its own dtype.

    Raises:
        CheckpointError: 64 bits, where JAX keeps 32.
    """
    if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise CheckpointError(
            f"{name!r} is {value.dtype}; write jax.config.update('jax_enable_x64', True) first, "
            'or it would be rounded'
        )
    return jnp.asarray(value)
