"""A weight method by its entry in `formats`, in and out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.core import paths
from peftjax.core.layout import Layout
from peftjax.core.model import Model
from peftjax.core.quantized import dense
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.format import Format
from peftjax.interop.peft.formats import FORMATS, METHODS
from peftjax.interop.peft.found import Arrays, Found, Part, bias_named, literal
from peftjax.interop.peft.names import ROOT, Names
from peftjax.interop.peft.written import (
    Written,
    common,
    conv1d,
    layers_of,
    linear_alone,
    modules_of,
)


def read_format(found: Found, form: Format) -> Part:
    config = found.config
    endings = {ours: tensor.ending for ours, tensor in form.tensors.items()}
    modules = found.take(endings, form.optional)
    if not modules:
        raise CheckpointError(
            f'{found.where} holds no tensor ending with {sorted(endings.values())}'
        )
    found.linear_alone(modules)
    found.check_targets(modules)
    for name, value in form.fixed.items():
        if name != 'save_projection':
            config.must_be(name, value)
    sign = -1 if form.negated(config) else 1
    turned = {
        module: {ours: sign * form.tensors[ours].load(array) for ours, array in arrays.items()}
        for module, arrays in modules.items()
    }
    arguments = {field.ours: config.plain(field.theirs, field.load) for field in form.fields}
    if form.load_more is not None:
        arguments |= form.load_more(config, next(iter(turned.values())))
    if form.biased:
        turned = {
            module: bias_named(found, module, arrays, form.biased)
            for module, arrays in turned.items()
        }
    if form.lengths:
        _check_lengths(found, turned, form.lengths)
    entries = found.entries(form.method, turned)
    if form.drawn is not None:
        sides = {}
        for module in turned:
            place = found.place(module)
            layout = found.layout(place.slot.path)
            sides.setdefault(place.slot.path, {})[place.number] = (
                module,
                layout.inputs,
                layout.outputs,
            )
        arguments[form.drawn.argument] = _drawn(found, form, sides)
    for path, places in (arguments.get('positions') or {}).items():
        if places.shape != entries[path]['values'].shape:
            raise CheckpointError(
                f'{found.where} has {places.shape} places for {path!r} and values of '
                f'{entries[path]["values"].shape}'
            )
    return METHODS[form.method](**arguments, targets=literal(entries)), entries


def _drawn(found: Found, form: Format, sides: Mapping[str, Mapping[int, Any]]) -> Any:
    """The drawn arrays of each matrix, stacked like its leaf, or one value for all."""
    assert form.drawn is not None
    flat = {
        f'{path}\0{index}': side for path, layers in sides.items() for index, side in layers.items()
    }
    value = form.drawn.load(found.config, flat, found.tensors)
    if not isinstance(value, dict):
        return value
    return {
        path: np.stack([value[f'{path}\0{index}'] for index in sorted(layers)])
        if found.names.slots[path].stacked
        else value[f'{path}\0{0}']
        for path, layers in sides.items()
    }


def _check_lengths(found: Found, modules: Mapping[str, Arrays], ending: str) -> None:
    """Checks that the lengths of the base's rows in the file are those of this base."""
    for module in modules:
        place = found.place(module)
        stored = found.tensors.pop(f'{module}{ending}', None)
        path = place.slot.path
        mine = _lengths(found.model, path, found.layout(path))[place.number]
        if stored is None or stored.shape != mine.shape or not np.allclose(stored, mine, rtol=1e-4):
            raise CheckpointError(
                f'{found.where}: the lengths {module}{ending} are not those of the rows of '
                f'{place.slot.path!r}; the adapter was made for another base'
            )


def write_format(
    model: Model, names: Names, arguments: Any, entries: Any, part: Any, *, kind: str
) -> Written:
    del part
    form = FORMATS[kind]
    linear_alone(names, entries, conv1d=form.conv1d)
    fields = {
        **common(names, kind, modules_of(names, entries)),
        **form.fixed,
        **{field.theirs: field.save(arguments[field.ours]) for field in form.fields},
        **({} if form.save_more is None else form.save_more(arguments)),
    }
    if fields.get('alpha', 0) is None:
        fields['alpha'] = arguments['rank'] + arguments.get('hybrid_rank', 0)
    if conv1d(names, entries):
        fields['fan_in_fan_out'] = True
    sign = -1 if form.negated(fields) else 1
    tensors = {}
    for module, arrays in modules_of(names, entries).items():
        for name, value in arrays.items():
            tensor = form.tensors[name.removesuffix('_and_bias')]
            tensors[f'{ROOT}{module}{tensor.ending}'] = sign * tensor.save(value)
    if form.drawn is not None:
        modules = {path: [m for m, _ in layers_of(names, path, {})] for path in entries}
        tensors |= form.drawn.save(arguments, entries, modules)
    if form.lengths:
        for path, entry in entries.items():
            rows = _lengths(model, path, entry.layout)
            for (module, _), each in zip(layers_of(names, path, {}), rows, strict=True):
                tensors[f'{ROOT}{module}{form.lengths}'] = each
    return tensors, fields


def _lengths(model: Model, path: str, layout: Layout) -> np.ndarray:
    """The lengths of the rows of each matrix of a leaf, float [layers, in]."""
    matrix = np.asarray(layout.to_matrix(dense(paths.flatten(model.params)[path])))
    return np.linalg.norm(matrix.reshape(-1, *matrix.shape[-2:]), axis=2)
