"""The tensors of a case as adapters of ours, by `peftjax.load_adapter`."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import peftjax
from tests.oracle.cases import CONFIG, HUB_WEIGHTS, WEIGHTS, Case, Tensors


@dataclasses.dataclass(frozen=True)
class Reading:
    """A method of ours, and how it reads the tensors that the other library trains.

    Attributes:
        read: `tensors -> adapter`, by the names that the gradients have.
        values: those tensors as they were trained.
    """

    transform: peftjax.PeftTransform
    read: Callable[[Tensors], Any]
    values: Tensors


def file_reading(case: Case, model: peftjax.Model, transform: peftjax.PeftTransform) -> Reading:
    """As `peftjax.load_adapter` reads the file."""
    places = {name: places_in_file(case, name) for name in case.gradients}
    values = {name: case.tensors[found[0]] for name, found in places.items() if found}

    def read(values: Tensors) -> Any:
        changed = {place: value for n, value in values.items() for place in places[n]}
        with tempfile.TemporaryDirectory() as copy:
            shutil.copy(case.folder / CONFIG, copy)
            save_file(
                {n: np.ascontiguousarray(v) for n, v in {**case.tensors, **changed}.items()},
                Path(copy, HUB_WEIGHTS if case.hub else WEIGHTS),
            )
            # A gradient that is NaN is wrong, and no damaged file.
            return peftjax.load_adapter(copy, model, allow_non_finite=True, **case.told).adapter

    return Reading(transform, read, values)


_PROMPTS = ('embedding.weight', 'delta_embedding.weight', 'trainable_embedding')


def places_in_file(case: Case, name: str) -> list[str]:
    """The tensors of the file that hold the parameter `name`; none if it is left out.

    A gradient has the name of the parameter, and a file shorter ones. What several modules share
    stands in the file once for each of them.
    """
    names = (
        name,
        name.replace('.modules_to_save.', '.'),
        name.removesuffix('.weight'),
        f'base_model.{name.rpartition(".")[2]}',
        'prompt_embeddings' if name in _PROMPTS else name,
    )
    first = next((each for each in names if each in case.tensors), None)
    if first is None or case.tensors[first].shape != case.gradients[name].shape:
        return []
    shared = [
        other
        for other, value in case.tensors.items()
        if other not in case.gradients and np.array_equal(value, case.tensors[first])
    ]
    return [first, *(other for other in shared if other != first)]
