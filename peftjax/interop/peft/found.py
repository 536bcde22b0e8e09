"""A file of peft that is being read: its tensors, by the modules of the model they belong to."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Adapter, Entry
from peftjax.core.layout import Layout
from peftjax.core.model import Model
from peftjax.core.transform import PeftTransform
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.config import PeftConfig
from peftjax.interop.peft.names import ROOT, Names, Place, linear, not_linear, stacked

Part = tuple[PeftTransform, Adapter]
Arrays = dict[str, np.ndarray]
_HEAD_COPY = re.compile(r'lm_head\.(modules_to_save\.)?(base_layer\.)?weight')


@dataclasses.dataclass
class Found:
    """A file that is being read; tensors that are taken are removed from `tensors`.

    told: by argument of `load_adapter`, what the caller says and the file does not; what is used is
    removed.
    """

    model: Model
    names: Names
    config: PeftConfig
    tensors: Arrays
    where: str
    told: dict[str, Any] = dataclasses.field(default_factory=dict)

    def take(self, endings: Mapping[str, str], optional: Iterable[str] = ()) -> dict[str, Arrays]:
        """`{module: {our name: array}}` of all tensors with these endings.

        Raises:
            CheckpointError: a module that the model lacks, or one without one of these tensors.
        """
        found: dict[str, Arrays] = {}
        for ours, ending in endings.items():
            for name in [name for name in self.tensors if name.endswith(ending)]:
                module = name.removesuffix(ending)
                if self.names.place_of_module(module) is None:
                    refuse_tied_head(self, module)
                    near = paths.nearby(module.removeprefix(ROOT), self.names.modules())
                    raise CheckpointError(
                        f'{self.where}: {name} belongs to no module of this model{near}'
                    )
                found.setdefault(module, {})[ours] = self.tensors.pop(name)
        for module, arrays in found.items():
            if absent := sorted(set(endings) - set(optional) - set(arrays)):
                lacking = [module + endings[name] for name in absent]
                raise CheckpointError(f'{self.where} lacks {", ".join(lacking)}')
        return found

    def by_leaf(self, modules: Mapping[str, Arrays]) -> dict[str, Arrays]:
        """The arrays of modules, as arrays of the leaves that hold the matrices."""
        grouped: dict[str, dict[int, Arrays]] = {}
        for module, arrays in modules.items():
            place = self.place(module)
            grouped.setdefault(place.slot.path, {})[place.number] = arrays
        return {
            path: stacked(self.names.slots[path], layers, self.where)
            for path, layers in grouped.items()
        }

    def place(self, module: str) -> Place:
        place = self.names.place_of_module(module)
        assert place is not None
        return place

    def layout(self, path: str) -> Layout:
        """The layout of the matrices in a leaf.

        Raises:
            CheckpointError: the leaf holds no matrices.
        """
        layout = self.model.sites.weights[path].layout
        if layout is None:
            raise CheckpointError(f'{self.where} adapts {path!r}, which has no matrix form')
        return layout

    def entries(self, method: str, modules: Mapping[str, Arrays]) -> dict[str, Entry]:
        """The adapter's entries of a weight method on these modules."""
        return {
            path: Entry(method, arrays, self.layout(path))
            for path, arrays in self.by_leaf(modules).items()
        }

    def linear_alone(self, modules: Iterable[str]) -> None:
        """Raises CheckpointError for a module that is not a linear layer."""
        if told := not_linear(self.place(module).slot for module in modules):
            raise CheckpointError(f'{self.where}: {told}')

    def check_targets(self, modules: Iterable[str]) -> None:
        """Raises CheckpointError unless target_modules means the modules that have tensors."""
        config, chosen = self.config, {module.removeprefix(ROOT) for module in modules}
        targets, excluded = config.get('target_modules'), config.get('exclude_modules')
        layers, pattern = config.get('layers_to_transform'), config.get('layers_pattern')
        if targets is None or targets == 'all-linear':
            return
        # Modules that are trained whole are not targets, and nothing in them is.
        saved = config.get('modules_to_save') or []
        meant = {
            name
            for name in self.names.modules()
            if meant_by(name, targets)
            and not any(f'.{each}.' in f'.{name}.' for each in saved)
            and not (excluded and meant_by(name, excluded))
            and _in_layers(name, layers, pattern)
        }
        if absent := sorted(meant - chosen):
            raise CheckpointError(
                f'{self.where} lacks tensors of {absent[:8]}, which target_modules means'
            )
        if extra := sorted(chosen - meant):
            raise CheckpointError(
                f'{self.where} has tensors of {extra[:8]}, which target_modules does not mean'
            )


def meant_by(name: str, targets: Any) -> bool:
    if isinstance(targets, str):
        return linear(targets).fullmatch(name) is not None
    if not isinstance(targets, list):
        raise CheckpointError(f'target_modules is {str(targets)[:80]!r}, no pattern and no list')
    return any(f'.{name}'.endswith(f'.{target}') for target in targets)


def _in_layers(name: str, layers: Any, pattern: Any) -> bool:
    if layers is None or layers == []:
        return True
    wanted = [layers] if isinstance(layers, int) else layers
    scopes = [pattern] if isinstance(pattern, str) else pattern or [r'[^.]*']
    for scope in scopes:
        found = linear(scope, r'.*\.{}\.(?P<layer>\d+)\..*').fullmatch(f'.{name}')
        if found is not None:
            return int(found['layer']) in wanted
    return False


def bias_named(found: Found, module: str, arrays: Arrays, name: str) -> Arrays:
    """`arrays`, with the one called `name` renamed if the module has a bias."""
    if found.names.place(f'{module}.bias') is None:
        return arrays
    return {f'{key}_and_bias' if key == name else key: value for key, value in arrays.items()}


def literal(leaves: Iterable[str]) -> tuple[str, ...]:
    return paths.exactly(leaves)


def refuse_tied(found: Found, module: str) -> None:
    """Raises CheckpointError for a change of one of the two places where a table is used."""
    if found.names.tied:
        raise CheckpointError(
            f'{found.where} changes {module.removeprefix(ROOT)} where it is looked up and not '
            'where it is the head, although the model ties the two; write peftjax.load(..., '
            'tie=False) for a separate head'
        )


def refuse_tied_head(found: Found, module: str) -> None:
    """Raises CheckpointError for a change of the head alone, where it is the embedding's table."""
    if found.names.tied and module.removeprefix(ROOT).partition('.')[0] == 'lm_head':
        raise CheckpointError(
            f'{found.where} changes {module.removeprefix(ROOT)}, but the head of this model is '
            'tied to its embedding; write peftjax.load(..., tie=False) for a separate head'
        )


def take_tied(found: Found, name: str, value: np.ndarray) -> None:
    """Takes the second copy of a tied table that the file holds whole.

    Raises:
        CheckpointError: there is no copy, or it differs, so that the two would no longer be tied.
    """
    if not found.names.tied:
        return
    copies = [each for each in found.tensors if _HEAD_COPY.fullmatch(each.removeprefix(ROOT))]
    if not copies or not all(np.array_equal(found.tensors[each], value) for each in copies):
        refuse_tied(found, name)
    for each in copies:
        found.tensors.pop(each)


def check_shapes(model: Model, where: str, part: Part) -> None:
    """Raises CheckpointError unless `init` of the transform would make arrays of these shapes."""
    transform, adapter = part
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    abstract = model.replace(params=shapes)
    try:
        expected, _ = jax.eval_shape(transform.init, jax.random.key(0), abstract)
    except ValueError as error:
        raise CheckpointError(f'{where} does not fit this model: {error}') from error
    mine, theirs = paths.flatten(expected), paths.flatten(adapter)
    wrong = [
        f'{path} is {theirs[path].shape if path in theirs else "missing"}, needs {leaf.shape}'
        for path, leaf in mine.items()
        if path not in theirs or theirs[path].shape != leaf.shape
    ]
    if wrong or set(theirs) - set(mine):
        extra = sorted(set(theirs) - set(mine))
        raise CheckpointError(
            f'{where} does not fit this model and its config: {"; ".join(wrong[:8])}'
            + (f'; not expected: {extra[:8]}' if extra else '')
        )
