"""Modules by the names that Hugging Face's peft gives them, and the leaves that hold them."""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import re2

from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.interop.errors import CheckpointError
from peftjax.models.names import Slot, slots
from peftjax.models.registry import family_of_config

ROOT = 'base_model.model.'
_LONGEST = 2000  # characters of a pattern


# Whisper's tables of positions.
_BY_ROWS = re.compile(r'(^|/)embed_positions/')


class Place(NamedTuple):
    """One tensor of the base: the slot of its leaf, and which of the slot's tensors it is."""

    slot: Slot
    number: int


class Names:
    """What the tensors of a model are called in a file of peft, in both directions.

    checkpoint: use the names in checkpoints, where those of transformers' own model differ.
    bare: use the names of a backbone alone, or of a model with a head; by default as the model is.
    """

    def __init__(self, model: Model, *, checkpoint: bool = False, bare: bool | None = None):
        family = family_of_config(model.config)
        leaves = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in paths.flatten(model.params).items()
        }
        headed = any(map(family.of_head, leaves))
        # Without a head of its own an encoder is saved as the bare backbone.
        bare = not (headed or family.writes) if bare is None else bare
        self.heads: tuple[str, ...] = family.heads
        # After a prompt, transformers takes padding for the last token, which this head reads.
        self.reads_last: bool = headed and family.writes and not family.reads_tokens(leaves)
        self.head: tuple[str, ...] = tuple(filter(family.of_head, leaves))
        self.task: str | None = 'CAUSAL_LM' if family.writes else 'FEATURE_EXTRACTION'
        if headed:
            self.task = 'TOKEN_CLS' if family.reads_tokens(leaves) else 'SEQ_CLS'
        if {'pixel_values', 'input_features'} & set(model.takes):
            self.task = None  # the library has no word for images, and passes speech on without one
        elif 'decoder_input_ids' in model.takes:
            self.task = 'SEQ_2_SEQ_LM'
        # The table of a tied head is two modules in torch, and an adapter there changes only one.
        self.tied: bool = family.writes and not headed and 'lm_head/kernel' not in leaves
        # The table of tokens, and in torch the head that shares it.
        self.table: str = next(iter(family.vocabulary), '')
        self.untied: bool = model.untied
        self.tied_head: str | None = 'lm_head' if 'lm_head/kernel' in family.vocabulary else None
        self._prefix = '' if bare else family.prefix
        self.slots: dict[str, Slot] = {slot.path: slot for slot in slots(family.names, leaves)}
        self._places: dict[str, Place] = {}
        self._names: dict[tuple[str, int], str] = {}
        for slot in self.slots.values():
            for index, held in enumerate(slot.names):
                name = held
                for pattern, new in () if checkpoint else family.modules:
                    name = re.sub(pattern, new, name)
                full = self.full(name)
                self._names[slot.path, index] = full
                self._places[full] = self._places[name] = Place(slot, index)

    @classmethod
    def of_file(cls, model: Model, tensors: Iterable[str]) -> 'Names':
        """The names in a file: of transformers 5, or of its earlier releases; of a model with a
        head, or of the backbone alone (`AutoModel`)."""
        bare = _of_backbone(model, [tensor.removeprefix(ROOT) for tensor in tensors])
        older, newer = cls(model, checkpoint=True, bare=bare), cls(model, bare=bare)
        only = {f'.{name}.' for name in set(older.modules()) - set(newer.modules())}
        return older if any(name in tensor for name in only for tensor in tensors) else newer

    def full(self, name: str) -> str:
        """The name that a tensor of the family's table has in this model."""
        beside = name.partition('.')[0] in ('lm_head', *self.heads)
        return name if beside else self._prefix + name

    def place(self, tensor: str) -> Place | None:
        """The place of a tensor of the base, `...weight` or `...bias`, with or without a prefix."""
        bare = tensor.removeprefix(ROOT).removeprefix('base_model.')
        return self._places.get(bare.replace('.base_layer.', '.'))

    def place_of_module(self, module: str) -> Place | None:
        """The place of a module's weight."""
        return self.place(f'{module}.weight')

    def tensor(self, path: str, index: int) -> str:
        """The name of a tensor of the base, without `base_model.model.`."""
        return self._names[path, index]

    def table_refused(self, slot: Slot) -> str | None:
        """Why a file cannot hold an adapter on this embedding; None if it can."""
        if self.tied and slot.path == self.table:
            return (
                f'{slot.path!r} is adapted where it is looked up and as the tied head; peft would '
                'change only the lookup; write peftjax.load(..., tie=False) for a separate head'
            )
        if _BY_ROWS.search(slot.path):
            return (
                f'{slot.path!r} is read by its rows in transformers, and not looked up by tokens, '
                'so that an adapter of peft does something else there'
            )
        return None

    def tensors(self) -> list[str]:
        """The names of all tensors of the base."""
        return list(self._names.values())

    def module(self, path: str, index: int) -> str:
        """The name of the module that a matrix belongs to."""
        return self.tensor(path, index).removesuffix('.weight')

    def modules(self) -> list[str]:
        """All modules with a weight that some method could adapt."""
        return sorted(
            {name[: -len('.weight')] for name in self._names.values() if '.weight' in name}
        )

    def short(self, modules: Iterable[str]) -> list[str]:
        """`target_modules` for these: last names if they mean the same, otherwise whole names."""
        chosen = set(modules)
        last = {name.rpartition('.')[2] for name in chosen}
        meant = {name for name in self.modules() if name.rpartition('.')[2] in last}
        return sorted(last if meant == chosen else chosen)


def _of_backbone(model: Model, tensors: Iterable[str]) -> bool | None:
    """Whether a file's names are those of a backbone alone; None if it names no part of one."""
    family = family_of_config(model.config)
    if not family.prefix:
        return None
    if any(tensor.startswith(family.prefix) for tensor in tensors):
        return False
    parts = {rule.theirs.partition('.')[0] for rule in family.names} - {'lm_head', *family.heads}
    return True if any(tensor.partition('.')[0] in parts for tensor in tensors) else None


def is_table(slot: Slot) -> bool:
    """Whether the module is an embedding."""
    return slot.path.endswith('embedding')


def window(slot: Slot) -> tuple[int, ...]:
    """The sizes of a convolution's window; () for a matrix."""
    return slot.shape[2:]


def not_linear(slots: Iterable[Slot]) -> str | None:
    """Why a method for linear layers cannot act on one of these modules; None if it can.

    The library has many methods for linear layers only. At a convolution they number the inputs of
    a window in another order, and they have no adapters for embeddings.
    """
    for slot in slots:
        kind = 'an embedding' if is_table(slot) else 'a convolution' if window(slot) else None
        if kind is not None:
            return f'{slot.path!r} is {kind}, where files of peft hold LoRA and DoRA alone'
    return None


def sliced(slot: Slot, value: Any, index: int) -> np.ndarray:
    """The part of a leaf, or of an array beside it, for one tensor of its slot."""
    return np.asarray(value)[index] if slot.stacked else np.asarray(value)


def stacked(
    slot: Slot, arrays: Mapping[int, Mapping[str, np.ndarray]], where: str
) -> dict[str, np.ndarray]:
    """The arrays of single layers, as arrays of the leaf.

    Raises:
        CheckpointError: layers of a stacked leaf that the file leaves out, or that differ in shape.
    """
    absent = sorted(set(range(len(slot.names))) - set(arrays))
    if absent:
        raise CheckpointError(
            f'{where} adapts {slot.path!r} in layers {sorted(arrays)} and not in {absent}, but the '
            'leaf holds all of them; write peftjax.load(..., scan=False)'
        )
    if not slot.stacked:
        return dict(arrays[0])
    for name in arrays[0]:
        shapes = {arrays[layer][name].shape for layer in arrays if name in arrays[layer]}
        if len(shapes) > 1 or any(name not in arrays[layer] for layer in arrays):
            raise CheckpointError(
                f'{where} has arrays of shapes {sorted(shapes)} for {slot.path!r} in different '
                'layers, which one stacked leaf cannot hold; write peftjax.load(..., scan=False)'
            )
    return {
        name: np.stack([arrays[layer][name] for layer in range(len(slot.names))])
        for name in arrays[0]
    }


def matches_end(pattern: str, module: str) -> bool:
    """Whether a key of rank_pattern, alpha_pattern or target_modules means a module.

    The library matches it as a regular expression at the end of the name, after a dot.

    Raises:
        CheckpointError: not a pattern that RE2 matches.
    """
    if isinstance(pattern, str) and re.fullmatch(r'[\w.]+', pattern):
        return f'.{module}'.endswith(f'.{pattern}')
    return linear(pattern, '(?:.*\\.)?(?:{})').fullmatch(module) is not None


def linear(pattern: Any, around: str = '{}') -> Any:
    """A regular expression from a file, for RE2: files are not trusted, and it never backtracks.

    around: the pattern to compile, with '{}' in the place of the file's pattern.

    Raises:
        CheckpointError: not a pattern, or one that RE2 does not match.
    """
    if not isinstance(pattern, str) or len(pattern) > _LONGEST:
        raise CheckpointError(f'{str(pattern)[:60]!r} is no pattern of module names')
    try:
        return _compiled(pattern, around)
    except re2.error as error:
        said = error.args[0]
        raise CheckpointError(
            f'the pattern {pattern[:200]!r} is none that RE2 matches in linear time '
            f'({said.decode(errors="replace") if isinstance(said, bytes) else said}); list the '
            'modules by name'
        ) from None


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str, around: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    re2.compile(pattern, options)  # Alone first, so that its brackets close none around it.
    return re2.compile(around.replace('{}', pattern), options)
