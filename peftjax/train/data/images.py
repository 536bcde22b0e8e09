"""Rows that are images, read when a batch is made of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from peftjax.train.data.packing import Row


class Images(Sequence[Row]):
    """Rows that are read from their files when they are asked for.

    A row: pixel_values float32 [3, size, size]; targets int32 []; weights float32 [].
    """

    def __init__(self, rows: Sequence[tuple[Any, np.int32]], read: Callable[[Any], np.ndarray]):
        self._rows, self._read = rows, read

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Images(self._rows[index], self._read)
        image, target = self._rows[index]
        return {
            'pixel_values': self._read(image),
            'targets': target,
            'weights': np.float32(1.0),
        }

    def sources(self) -> Iterator[tuple[Any, int]]:
        """The source of each row, a path or bytes, and its class."""
        return ((image, int(target)) for image, target in self._rows)

    def sizes(self) -> np.ndarray:
        """int [rows]: 0 for each image, which has no tokens to pad."""
        return np.zeros(len(self), np.int64)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))
