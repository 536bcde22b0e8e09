"""Samples of weights, which show whether another machine computes the same `frozen.params`."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax.core import paths
from peftjax.interop.errors import CheckpointError
from peftjax.interop.folder import arrays as files
from peftjax.interop.folder.write import SAMPLES, is_real

# Products differ between machines, in TF32 say, by this share of a weight's largest number.
_ROUNDING = 2e-3


def check_samples(where: str, params: Any, before: Any, samples: dict[str, Any]) -> None:
    """Compares the frozen weights beside a fresh adapter with samples from where they were saved.

    Args:
        where: the folder.
        params: the frozen weights as computed here. before: the model's weights.
        samples: some numbers of each frozen weight, from the file.

    Raises:
        CheckpointError: they differ by more than rounding.
    """
    leaves, whole_leaves = paths.flatten(params), paths.flatten(before)
    for path, numbers in samples.items():
        if path not in leaves or not (_numbers(numbers) and is_real(leaves[path])):
            raise CheckpointError(f'{where}: {path[:60]!r} has no numbers to compare')
        expected = np.asarray([np.nan if each is None else each for each in numbers])
        found, whole = (files.sample(tree[path], SAMPLES) for tree in (leaves, whole_leaves))
        rounding = max(_ROUNDING, float(jnp.finfo(found.dtype).eps))
        found = found.astype(np.float64)
        most = rounding * np.max(np.abs(whole), initial=0.0, where=np.isfinite(whole))
        if found.shape != expected.shape or not np.allclose(
            found, expected, rtol=0.0, atol=most, equal_nan=True
        ):
            raise CheckpointError(
                f'{where}: the frozen part of {path!r} beside a fresh adapter differs here from '
                'where it was saved; save it there with whole=True'
            )


def _numbers(value: Any) -> bool:
    plain = isinstance(value, list) and len(value) <= SAMPLES
    return plain and all(isinstance(each, int | float | None) for each in value)
