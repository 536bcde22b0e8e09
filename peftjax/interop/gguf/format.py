"""The GGUF container: metadata and the place of each tensor, all sizes checked against the file.

The `gguf` package has a reader too. It makes an array view for each string (two seconds for a
vocabulary of 49 thousand), and in a damaged file it reads past the end, as often as a corrupt count
says. The layout is small enough to be read with care here.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import pathlib
import struct
from typing import Any, NamedTuple

import gguf
import numpy as np

from peftjax.interop.errors import CheckpointError
from peftjax.interop.files.tensors import Packed
from peftjax.quantize.gguf_blocks import Q4_0, Q4_1, Q8_0

_SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q'} | {
    12: 'd'
}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
# No real file has more. A number in Python takes many times the bytes that it takes in a file.
_MOST_ENTRIES, _MOST_ELEMENTS = 100_000, 4_000_000
_SCHEMES = {
    gguf.GGMLQuantizationType.Q4_0: Q4_0(),
    gguf.GGMLQuantizationType.Q4_1: Q4_1(),
    gguf.GGMLQuantizationType.Q8_0: Q8_0(),
}


class GgufTensor(NamedTuple):
    """Shape with the fastest axis last, as in numpy; `start` and `size` in bytes of the file."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    size: int


class GgufFile(NamedTuple):
    """The content of a GGUF file, whose tensors are not read yet."""

    path: pathlib.Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    buffer: mmap.mmap


def open_gguf(path: pathlib.Path) -> GgufFile:
    """Reads metadata and tensor headers of a little-endian GGUF file, version 2 or 3.

    Raises:
        CheckpointError: a file of another format, cut short, or with sizes that cannot be right.
    """
    if path.stat().st_size == 0:
        raise CheckpointError(f'{path} is empty')
    with path.open('rb') as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(path, buffer)
    if cursor.take(4, 'magic') != b'GGUF':
        raise CheckpointError(f'{path} is not a GGUF file: it does not begin with GGUF')
    version = cursor.scalar('I', 'version')
    if version not in (2, 3):
        raise CheckpointError(f'{path}: GGUF version {version} is not supported, only 2 and 3')
    tensor_count, pair_count = cursor.scalar('Q', 'tensor count'), cursor.scalar('Q', 'pair count')
    metadata: dict[str, Any] = {}
    for _ in range(cursor.plausible(pair_count, 12, 'metadata pairs', _MOST_ENTRIES)):
        name = cursor.text('metadata key')
        if name in metadata:
            raise CheckpointError(f'{path}: metadata key {name} occurs twice')
        metadata[name] = cursor.value(cursor.scalar('I', name), name)
    infos = {}
    for _ in range(cursor.plausible(tensor_count, 24, 'tensors', _MOST_ENTRIES)):
        name = cursor.text('tensor name')
        if name in infos:
            raise CheckpointError(f'{path}: tensor {name} occurs twice')
        infos[name] = cursor.tensor_info(name)
    alignment = metadata.get('general.alignment', 32)
    power = isinstance(alignment, int) and 0 < alignment <= 2**20 and alignment.bit_count() == 1
    if not power:
        raise CheckpointError(
            f'{path}: general.alignment is {str(alignment)[:60]}, not a power of two up to {2**20}'
        )
    begin = math.ceil(cursor.offset / alignment) * alignment
    tensors = {name: _placed(path, name, begin, len(buffer), *info) for name, info in infos.items()}
    _check_places(path, tensors, begin, alignment)
    return GgufFile(path, metadata, tensors, buffer)


def _check_places(
    path: pathlib.Path, tensors: dict[str, GgufTensor], begin: int, alignment: int
) -> None:
    """Checks that tensors follow each other in the order of their headers, each aligned."""
    free, before = begin, 'the header'
    for name, tensor in tensors.items():
        if (tensor.start - begin) % alignment:
            raise CheckpointError(
                f'{path}: tensor {name} begins at byte {tensor.start - begin} of the data, not at '
                f'a multiple of general.alignment {alignment}'
            )
        if tensor.start < free:
            raise CheckpointError(
                f'{path}: tensor {name} begins at byte {tensor.start}, before the end of {before} '
                f'at {free}'
            )
        free, before = tensor.start + tensor.size, name


def read_tensor(file: GgufFile, name: str) -> np.ndarray:
    """One tensor, dequantised to float32.

    Raises:
        CheckpointError: a block format that the `gguf` package cannot dequantise.
    """
    tensor = file.tensors[name]
    # The package has a class for each format of blocks that it dequantises, by the format's name.
    if tensor.kind.name not in ('F32', 'F16') and not hasattr(gguf.quants, tensor.kind.name):
        raise CheckpointError(
            f'{file.path}: tensor {name} has the format {tensor.kind.name}, which cannot be read'
        )
    raw = np.frombuffer(file.buffer, np.uint8, tensor.size, tensor.start)
    rows = raw.reshape(*tensor.shape[:-1], -1)
    return gguf.dequantize(rows, tensor.kind).reshape(tensor.shape)


def read_packed(file: GgufFile, name: str) -> Packed | None:
    """A matrix in the format of the file; None if no `Scheme` has it, or for other tensors."""
    tensor = file.tensors[name]
    scheme = _SCHEMES.get(tensor.kind)
    if scheme is None or len(tensor.shape) != 2:
        return None
    raw = np.frombuffer(file.buffer, np.uint8, tensor.size, tensor.start)
    return scheme, scheme.split(raw.reshape(tensor.shape[0], -1))


class _Cursor:
    """A position in the file that never passes its end."""

    def __init__(self, path: pathlib.Path, buffer: mmap.mmap):
        self.path, self.buffer, self.offset = path, buffer, 0

    def take(self, size: int, what: str) -> bytes:
        self.plausible(size, 1, what)
        self.offset += size
        return self.buffer[self.offset - size : self.offset]

    def plausible(self, count: int, size: int, what: str, most: int | None = None) -> int:
        """`count`, if at most `most`, and if items of `size` bytes fit in the rest of the file."""
        left = len(self.buffer) - self.offset
        if count * size > left:
            raise CheckpointError(
                f'{self.path} is corrupt or truncated: {what} at byte {self.offset} asks for '
                f'{count * size} bytes or more, {left} are left'
            )
        if most is not None and count > most:
            raise CheckpointError(f'{self.path}: {what} are {count}, more than {most}')
        return count

    def scalar(self, code: str, what: str) -> Any:
        return struct.unpack('<' + code, self.take(struct.calcsize('<' + code), what))[0]

    def text(self, what: str) -> str:
        try:
            return self.take(self.scalar('Q', what), what).decode('utf-8')
        except UnicodeDecodeError as error:
            raise CheckpointError(f'{self.path}: {what} is not UTF-8: {error}') from error

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind not in _SCALARS:
            raise CheckpointError(f'{self.path}: {what} has the unknown type {kind}')
        value = self.scalar(_SCALARS[kind], what)
        if isinstance(value, float) and not math.isfinite(value):
            raise CheckpointError(f'{self.path}: {what} is {value}, not a finite number')
        # The shortest decimal that gives the same float32: 1e-05 and not 9.999999747378752e-06.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def array(self, what: str) -> list[Any]:
        kind, count = self.scalar('I', what), self.scalar('Q', what)
        if kind == _ARRAY:
            raise CheckpointError(f'{self.path}: {what} is an array of arrays')
        if kind in _SCALARS:
            code = '<' + _SCALARS[kind]
            size = struct.calcsize(code)
            self.plausible(count, size, what, _MOST_ELEMENTS)
            return np.frombuffer(self.take(count * size, what), code).tolist()
        return [
            self.value(kind, what) for _ in range(self.plausible(count, 8, what, _MOST_ELEMENTS))
        ]

    def tensor_info(self, name: str) -> tuple[tuple[int, ...], int, int]:
        axes = self.scalar('I', name)
        if not 1 <= axes <= 4:
            raise CheckpointError(f'{self.path}: tensor {name} has {axes} axes')
        shape = tuple(self.scalar('Q', name) for _ in range(axes))[::-1]
        return shape, self.scalar('I', name), self.scalar('Q', name)


def _placed(
    path: pathlib.Path,
    name: str,
    begin: int,
    end: int,
    shape: tuple[int, ...],
    kind: int,
    offset: int,
) -> GgufTensor:
    """The place of a tensor, given where the data section begins and where the file ends."""
    if kind not in gguf.GGML_QUANT_SIZES:
        raise CheckpointError(f'{path}: tensor {name} has the unknown format {kind}')
    kind = gguf.GGMLQuantizationType(kind)
    block, block_size = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block or 0 in shape:
        raise CheckpointError(
            f'{path}: tensor {name} of shape {shape} does not divide into {kind.name} blocks '
            f'of {block}'
        )
    size = math.prod(shape) // block * block_size
    if begin + offset + size > end:
        raise CheckpointError(
            f'{path} is corrupt or truncated: tensor {name} ends at byte {begin + offset + size}, '
            f'the file at {end}'
        )
    return GgufTensor(shape, kind, begin + offset, size)
