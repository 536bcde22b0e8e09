"""`peftjax.save`: any adapter of any model as a folder."""

import importlib
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.errors import AdapterError
from peftjax.core.frozen import Frozen, check_frozen
from peftjax.core.holes import is_hole
from peftjax.core.model import Model
from peftjax.core.quantized import is_quantized
from peftjax.core.transform import PeftTransform
from peftjax.interop.files import whole as whole_files
from peftjax.interop.folder import arrays as files
from peftjax.interop.folder import trees
from peftjax.interop.folder.encode import encode, is_described
from peftjax.interop.folder.text import text_of

DESCRIPTION, ADAPTER, FROZEN = 'peftjax.json', 'adapter.safetensors', 'frozen.safetensors'
FORMAT = 1
SAMPLES = 16  # numbers of each leaf that a method changes, for `restore` to compare


def save(
    folder: str | os.PathLike[str],
    model: Model,
    transform: PeftTransform,
    adapter: Adapter,
    frozen: Frozen,
    *,
    whole: bool = False,
) -> None:
    """Writes an adapter to a folder; `restore` reads the adapter and its method back.

    It works for any method and any model. The folder holds peftjax.json (the arguments of the
    transform and a fingerprint of the model), adapter.safetensors (every array of the adapter, by
    its path, in its own dtype) and, if necessary, frozen.safetensors. Other libraries cannot read
    this folder; for them, use `save_adapter`, which supports fewer methods.

    The folder does not hold the model's own parameters, so `restore` needs the same model. The
    fingerprint has the path, shape, dtype and quantisation scheme of every leaf, and a checksum of
    at most 4096 numbers spread over each leaf. The checksum covers smaller leaves completely. In a
    larger leaf it can miss a change of a few numbers.

    `save` writes only the parts of `frozen` that `restore` cannot compute again:

    - arrays of `frozen.own` that changed. The others follow from the arguments of the transform (a
      seed draws the same arrays again).
    - leaves of `frozen.params` that differ from the ones that `transform` computes from the model.
      `jax.jit(transform.init)` may give leaves that differ in the last bit; they are written too.
    - the initial `A` and `B` of a method that subtracts them from the weights (PiSSA, OLoRA), so
      that `restore` computes `W - s A B` without a decomposition. `save` also writes 16 numbers of
      each such leaf. `restore` compares them, because another machine may round the product
      differently.
    - the codes of LoftQ.

    Call it in a single process that holds every array completely.

    Args:
        folder: the folder to write. An older save in it is replaced in one step, after all new
            files are on the disk. Other files in the folder stay.
        model: the model that `init` was given.
        transform: the transform of the adapter. If you built it from your own functions, the
            folder cannot describe it, and you must pass it to `restore`.
        adapter, frozen: the trained adapter, and `frozen` as returned by `init`.
        whole: write every leaf of `frozen.params` that differs from the model's, of any size.

    Raises:
        AdapterError: the adapter or `frozen` belongs to another transform or another model.
        ValueError: an argument of the transform cannot be stored, such as your own function (the
            error names it), or an array has a dtype that cannot be stored.
        OSError: writing failed, for example on a full disk. An older save is unchanged.

    Example:
        >>> mlp = peftjax.testing.tiny_mlp()
        >>> tx = peftjax.lora(rank=2, targets=r'hidden')
        >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
        >>> folder = getfixture('tmp_path')
        >>> peftjax.save(folder, mlp, tx, adapter, frozen)
        >>> sorted(path.name for path in folder.iterdir())
        ['adapter.safetensors', 'peftjax.json']
    """
    Saver(model, transform, adapter, frozen, whole=whole)(folder, adapter)


class Saver:
    """`save` for an adapter that changes while its model and `frozen` stay.

    Everything but the adapter's arrays is prepared once, so that a training loop writes the best
    adapter so far without the model's parameters, which may have moved into the adapter.
    """

    def __init__(
        self,
        model: Model,
        transform: PeftTransform,
        adapter: Adapter,
        frozen: Frozen,
        *,
        whole: bool = False,
    ):
        """Takes what `save` takes.

        Raises:
            AdapterError, ValueError: as `save`.
        """
        check_is_model(model)
        check_is_transform(transform)
        check_frozen(adapter, frozen)
        own = transform.own(model)
        transform.rules(adapter, frozen.own)  # Refuses the adapter of another transform.
        self._shapes = trees.by_path(jax.eval_shape(transform.start, jax.random.key(0), model))
        trees.check_alike('the adapter', trees.by_path(adapter), self._shapes)
        arrays: dict[str, Any] = {}
        described = is_described(transform)
        self._fields: dict[str, Any] = {
            'format': FORMAT,
            'peftjax': importlib.import_module('peftjax').__version__,
            'transform': encode(transform, arrays, 'transform/') if described else None,
            'model': trees.fingerprint(model.params),
            'own': _changed_own(own, frozen.own, arrays),
            'params': _left(model, transform, adapter, Frozen(frozen.params, own), arrays, whole),
        }
        self._arrays = arrays

    def __call__(self, folder: str | os.PathLike[str], adapter: Adapter) -> None:
        """Writes the folder with this adapter."""
        trained = trees.by_path(adapter)
        trees.check_alike('the adapter', trained, self._shapes)
        written = {ADAPTER: trained, **({FROZEN: self._arrays} if self._arrays else {})}
        with whole_files.new_folder(folder, {DESCRIPTION, ADAPTER, FROZEN}.__contains__) as new:
            about = {name: files.write(new / name, each) for name, each in written.items()}
            text = text_of({**self._fields, 'files': about})
            whole_files.write_text(new / DESCRIPTION, text)


def check_is_model(model: Any) -> None:
    """Raises `TypeError` unless `model` is a model."""
    if not isinstance(model, Model):
        raise TypeError(f'model is a {type(model).__name__}; give one of peftjax.load or wrap')


def check_is_transform(transform: Any) -> None:
    """Raises `TypeError` unless `transform` is a transform."""
    if not isinstance(transform, PeftTransform):
        raise TypeError(f'transform is a {type(transform).__name__}; write one: peftjax.lora(...)')


def _changed_own(made: Any, own: Any, arrays: dict[str, Any]) -> list[str]:
    """Paths of the numbers of `own` that the transform does not make; the arrays go to `arrays`."""
    expected, found = trees.by_path(made), trees.by_path(own)
    trees.check_alike('frozen.own', found, expected)
    changed = [path for path in found if not files.same(found[path], expected[path])]
    arrays.update({f'own/{path}': found[path] for path in changed})
    return changed


def _left(
    model: Model,
    transform: PeftTransform,
    adapter: Adapter,
    frozen: Frozen,
    arrays: dict[str, Any],
    whole: bool,
) -> dict[str, Any]:
    """How `frozen.params` follows from the model, and the leaves that do not follow from it.

    frozen: with `own` as the transform makes it.
    """
    before, found = paths.slots(model.params), paths.slots(frozen.params)
    if set(before) != set(found):
        path = min(set(before) ^ set(found))
        raise AdapterError(
            f'frozen.params and the model differ in {path!r}, which one of them lacks; was it made '
            'for another model?'
        )
    for path, leaf in found.items():
        if getattr(leaf, 'shape', ()) != getattr(before[path], 'shape', ()):
            raise AdapterError(
                f'frozen.params has {leaf!r} at {path!r}, but the model has {before[path]!r}; was '
                'it made for another model?'
            )
    coded = [path for path in found if is_quantized(found[path]) > is_quantized(before[path])]
    if transform.rest is None:
        source, params = 'adapter', transform.remaining(model.params, adapter, frozen.own)
    elif whole or coded:
        source, params = 'model', model.params
    else:
        fresh = transform.start(jax.random.key(0), model)
        source, params = 'start', transform.remaining(model.params, fresh, frozen.own)
        arrays.update({f'start/{path}': leaf for path, leaf in trees.by_path(fresh).items()})
    expected = paths.slots(params)
    values, samples = {}, {}
    for path, leaf in found.items():
        if not files.same(leaf, expected[path]):
            values[path] = _encoded(path, leaf, arrays)
        elif source == 'start' and expected[path] is not before[path] and is_real(leaf):
            numbers = files.sample(leaf, SAMPLES).astype(np.float64).tolist()
            samples[path] = [each if math.isfinite(each) else None for each in numbers]
    return {'from': source, 'values': values, 'samples': samples}


def _encoded(path: str, leaf: Any, arrays: dict[str, Any]) -> Any:
    name = f'params/{path}'
    if is_hole(leaf) or is_quantized(leaf):
        return encode(leaf, arrays, f'{name}/', path)
    arrays[name] = leaf
    return {'array': name}


def is_real(leaf: Any) -> bool:
    """Whether a leaf is an array of real numbers, as it is."""
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
