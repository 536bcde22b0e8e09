"""Fills quantised leaves, one matrix at a time: no leaf is ever whole in full precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.quantized import QuantizedArray, one_matrix
from peftjax.core.sites import WeightSite
from peftjax.interop.files import finite
from peftjax.interop.files.tensors import Tensors
from peftjax.models.names import Slot
from peftjax.quantize.model import pack


def stored(
    slot: Slot, tensors: Tensors | None, site: WeightSite, dtype: Any
) -> QuantizedArray | None:
    """The leaf as its file stores it, as shapes; None unless all its matrices have one `Scheme`."""
    if site.layout is None or tensors is None:
        return None
    matrix = one_matrix(site.layout)
    # Files store matrices as [outputs, inputs], but lookup tables as they are; so do schemes.
    if len(matrix.shape) != 2 or matrix.lookup == slot.transposed:
        return None
    found = [tensors.packed(name) for name in slot.names]
    if None in found or len({each[0] for each in found if each}) != 1:
        return None
    assert found[0] is not None
    scheme, arrays = found[0]
    stack = (len(slot.names),) if slot.stacked else ()
    shapes = {
        name: jax.ShapeDtypeStruct((*stack, *each.shape), each.dtype)
        for name, each in arrays.items()
    }
    return QuantizedArray(shapes, scheme, matrix, dtype)


def fill(slot: Slot, tensors: Tensors, leaf: QuantizedArray, as_stored: bool, where: Any) -> Any:
    """The leaf that the abstract one describes, placed `where`."""
    parts = [_read(slot, tensors, name, leaf, as_stored) for name in slot.names]
    arrays = {
        name: np.stack([part[name] for part in parts]) if slot.stacked else parts[0][name]
        for name in leaf.arrays
    }
    filled = QuantizedArray(arrays, leaf.scheme, leaf.matrix, leaf.dtype)
    return jax.tree.map(jnp.asarray, filled) if where is None else jax.device_put(filled, where)


def _read(
    slot: Slot, tensors: Tensors, name: str, leaf: QuantizedArray, as_stored: bool
) -> dict[str, np.ndarray]:
    if as_stored:
        packed = tensors.packed(name)
        assert packed is not None
        return packed[1]
    values = tensors.read(name)
    with np.errstate(over='ignore'):  # `check_cast` finds an overflow and names the tensor.
        made = (values.T if slot.transposed else values).astype(leaf.dtype)
    finite.check_cast(tensors.where, name, values, made)
    return jax.device_get(pack(made, leaf.matrix, leaf.scheme).arrays)
