"""`peftjax.restore`: reads what `peftjax.save` wrote, without trusting the files."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.frozen import Frozen
from peftjax.core.holes import Hole
from peftjax.core.model import Model
from peftjax.core.quantized import QuantizedArray
from peftjax.core.transform import PeftTransform
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files.steady import steadily
from peftjax.interop.folder import arrays as files
from peftjax.interop.folder import trees
from peftjax.interop.folder.decode import Decoder
from peftjax.interop.folder.encode import difference, encode, is_described
from peftjax.interop.folder.samples import check_samples
from peftjax.interop.folder.text import read_text
from peftjax.interop.folder.write import (
    ADAPTER,
    DESCRIPTION,
    FORMAT,
    FROZEN,
    check_is_model,
    check_is_transform,
)

_FIELDS = {
    'format': int,
    'peftjax': str,
    'transform': dict | None,
    'model': dict,
    'own': list,
    'params': dict,
    'files': dict,
}


class Restored(NamedTuple):
    """What a folder of `save` holds.

    Attributes:
        transform: the method.
        adapter: what trains.
        frozen: what does not train beside it.
    """

    transform: PeftTransform
    adapter: Adapter
    frozen: Frozen


def restore(
    folder: str | os.PathLike[str],
    model: Model,
    *,
    transform: PeftTransform | None = None,
    allow_non_finite: bool = False,
) -> Restored:
    """Reads what `save` wrote: the method, the adapter and what is frozen beside it.

    The files are not trusted: they can only call the constructors of peftjax's own methods, with
    the arguments that peftjax.json holds.

    Args:
        folder: a folder of `save`.
        model: the model that the adapter was made for, with its real parameters.
        transform: a transform of your own functions, which no file describes. If the folder
            describes a transform, the given one must have the same description.
        allow_non_finite: accept an adapter with numbers that are NaN or infinite, to inspect it.

    Returns:
        `Restored(transform, adapter, frozen)`; arrays have the dtypes that they were saved in.

    Raises:
        CheckpointError: a file that is absent, corrupt, or of another save; an array of the
            adapter or of the weights beside it that is not finite; another model, with the first
            leaf that differs; a tensor that is missing, unknown, or of another shape; a description
            that this version cannot read; a transform of your own that is not given.

    Example:
        >>> mlp = peftjax.testing.tiny_mlp()
        >>> tx = peftjax.lora(rank=2, alpha=4, targets=r'hidden')
        >>> folder = getfixture('tmp_path')
        >>> peftjax.save(folder, mlp, tx, *tx.init(jax.random.key(0), mlp))
        >>> transform, adapter, frozen = peftjax.restore(folder, mlp)
        >>> peftjax.adapt(mlp, transform)(adapter, frozen, jnp.ones((2, 4))).shape
        (2, 3)
    """
    check_is_model(model)
    place = pathlib.Path(folder)

    def opened() -> tuple[dict[str, Any], files.Stored, files.Stored | None]:
        fields = _fields(place / DESCRIPTION)
        trees.check_model(str(place), fields['model'], model.params)
        about = fields['files']
        trained = files.Stored(place / ADAPTER, about.get(ADAPTER))
        others = files.Stored(place / FROZEN, about[FROZEN]) if FROZEN in about else None
        return fields, trained, others

    fields, trained, others = steadily(place, opened)
    if not allow_non_finite:
        trained.refuse_non_finite()
        if others is not None:
            others.refuse_non_finite('start/', 'params/')
    reader = _Reader(str(place), fields, model, trained, others)
    if transform is not None:  # Errors of its functions are raised as they are.
        check_is_transform(transform)
        reader.check_described(transform)
        return reader.read(transform)
    made = reader.transform()
    try:
        return reader.read(made)
    except CheckpointError:
        raise
    except Exception as error:  # Any: the arguments of the transform are not trusted.
        raise CheckpointError(f'{place}: {made!r} does not fit this model: {error}') from error


def _fields(path: pathlib.Path) -> dict[str, Any]:
    """The fields of a description, with their types checked."""
    fields = read_text(path)
    if fields.get('format') != FORMAT:
        raise CheckpointError(
            f'{path} is of format {str(fields.get("format"))[:60]}, but this version reads '
            f'{FORMAT}; peftjax {str(fields.get("peftjax"))[:60]} wrote it'
        )
    for name, kind in _FIELDS.items():
        if name not in fields or not isinstance(fields[name], kind):
            raise CheckpointError(f'{path}: {name!r} is missing, or of another type')
    return fields


class Arrays(NamedTuple):
    """The trained arrays of a folder of `save`, without a model.

    Attributes:
        adapter: by path.
        starts_from: what `frozen.params` is computed from: 'adapter' or 'model' if all its leaves
            are the model's own, 'start' if the method moved a part of some into the adapter.
    """

    adapter: dict[str, np.ndarray]
    starts_from: str


def read_arrays(folder: str | os.PathLike[str]) -> Arrays:
    """The arrays that were trained, from a folder of `save`.

    Raises:
        CheckpointError: a file that is absent, corrupt, or of another save.
    """
    place = pathlib.Path(folder)

    def opened() -> tuple[dict[str, Any], files.Stored]:
        fields = _fields(place / DESCRIPTION)
        return fields, files.Stored(place / ADAPTER, fields['files'].get(ADAPTER))

    fields, stored = steadily(place, opened)
    arrays = {name: stored.take(name) for name in stored.names}
    return Arrays(arrays, str(fields['params'].get('from')))


class _Reader:
    """A folder whose files are open."""

    def __init__(
        self,
        where: str,
        fields: dict[str, Any],
        model: Model,
        trained: files.Stored,
        others: files.Stored | None,
    ):
        self._where, self._fields, self._model = where, fields, model
        self._trained, self._others = trained, others
        self._decoder = Decoder(self._take)

    def _take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        if self._others is None:
            raise CheckpointError(f'{self._where} has no {FROZEN}, which should hold {name!r}')
        return self._others.take(name, shape)

    def transform(self) -> PeftTransform:
        """The transform that the folder describes."""
        node = self._fields['transform']
        if node is None:
            raise CheckpointError(
                f'{self._where} holds an adapter of a transform of your own, which no file '
                'describes; write peftjax.restore(folder, model, transform=tx)'
            )
        try:
            return self._decoder.transform(node)
        except CheckpointError as error:
            raise CheckpointError(f'{self._where}: {error}') from error

    def check_described(self, transform: PeftTransform) -> None:
        """Raises `CheckpointError` if the folder describes another transform."""
        node, arrays = self._fields['transform'], {}
        if node is None:
            return
        if not is_described(transform):
            raise CheckpointError(
                f'{self._where} describes a transform, but the one given is of functions'
            )
        different = difference(node, encode(transform, arrays, 'transform/'))
        for name, array in arrays.items():
            if different is None and not files.same(self._take(name), files.host(array)):
                different = f'the array {name!r} has other numbers'
        if different is not None:
            raise CheckpointError(f'{self._where} is of another transform: {different}')

    def read(self, transform: PeftTransform) -> Restored:
        """All that the folder holds, read with a transform."""
        model = self._model
        # The shapes first: they are compared with the file before anything is computed.
        shapes = jax.eval_shape(transform.start, jax.random.key(0), model)
        adapter = self._like(shapes, self._trained.take)
        self._trained.check_all_taken()
        own = transform.own(model)
        params = self._params(transform, shapes, adapter, own)
        own = self._own(own)
        transform.rules(adapter, own)
        if self._others is not None:
            self._others.check_all_taken()
        return Restored(transform, adapter, Frozen(params, own))

    def _like(self, shapes: Any, take: Callable[..., np.ndarray], prefix: str = '') -> Any:
        leaves = {
            path: files.on_device(path, take(prefix + path, tuple(each.shape)))
            for path, each in trees.by_path(shapes).items()
        }
        return trees.refill(shapes, leaves)

    def _own(self, own: Any) -> Any:
        leaves, changed = trees.by_path(own), self._fields['own']
        for path in changed:
            if not isinstance(path, str) or path not in leaves:
                raise CheckpointError(
                    f'{self._where}: the transform has no number {str(path)[:60]!r} of its own'
                )
            value = self._take(f'own/{path}', np.shape(leaves[path]))
            leaves[path] = files.on_device(path, value)
        return trees.refill(own, leaves) if changed else own

    def _params(self, transform: PeftTransform, shapes: Any, adapter: Adapter, own: Any) -> Any:
        """`frozen.params`: computed from the model, with the stored leaves in their places."""
        left, before = self._fields['params'], self._model.params
        values, samples = left.get('values'), left.get('samples')
        if not (isinstance(values, dict) and isinstance(samples, dict)):
            raise CheckpointError(f'{self._where}: "params" lacks values or samples')
        source, starts = left.get('from'), transform.rest is not None
        if source == 'start' and starts:
            fresh = self._like(shapes, self._take, 'start/')
            params = transform.remaining(before, fresh, own)
        elif source == 'model' and starts:
            params = before
        elif source == 'adapter' and not starts:
            params = transform.remaining(before, adapter, own)
        else:
            raise CheckpointError(
                f'{self._where}: params come from {str(source)[:60]!r}, which is not how this '
                'transform leaves them'
            )
        check_samples(self._where, params, before, samples)
        return self._replaced(params, values) if values else params

    def _replaced(self, params: Any, values: dict[str, Any]) -> Any:
        leaves, stored = paths.slots(self._model.params), {}
        for path, node in values.items():
            value = stored[path] = self._decoder.value(node)
            if path not in leaves or not isinstance(value, Hole | QuantizedArray | jax.Array):
                raise CheckpointError(f'{self._where}: {path[:60]!r} is no leaf of this model')
            if value.shape != leaves[path].shape:
                raise CheckpointError(
                    f'{self._where}: {path!r} is of shape {value.shape} in frozen.params, but the '
                    f'model has {leaves[path].shape}'
                )
        return paths.replace(params, stored)
