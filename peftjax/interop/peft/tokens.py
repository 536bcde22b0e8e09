"""Rows of an embedding, and of a head, that are trained for single tokens, in and out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from peftjax.core import paths
from peftjax.core.entries import Entry
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, Part, literal
from peftjax.interop.peft.names import ROOT, Names
from peftjax.interop.peft.written import Written, common
from peftjax.methods.sparse.trainable_tokens import trainable_tokens

_ROWS = '.trainable_tokens_delta'
_TABLE = '.token_adapter.base_layer.weight'
_HEAD = 'lm_head/kernel'


class Rows(NamedTuple):
    """Rows of one table: the tokens, the path of the leaf, and the values [ids, features]."""

    ids: tuple[int, ...]
    path: str
    values: Any


def read_tokens(found: Found) -> list[Part]:
    """Rows of an embedding and of a head; the file calls them a change, but they are new rows.

    If the file also has the table around the rows, and it differs from the model's, the whole table
    with these rows is read.
    """
    config = found.config
    given = config.get('trainable_token_indices') or config.get('token_indices')
    config.get('target_modules')
    tables: dict[str, np.ndarray] = {}
    numbers: dict[str, tuple[int, ...]] = {}
    for name in [name for name in found.tensors if name.endswith(_ROWS)]:
        module = name.removesuffix(_ROWS).removesuffix('.token_adapter')
        values = found.tensors.pop(name)
        path = _path(found, module)
        # The file has the rows of a tied head too.
        if path in tables and not np.array_equal(values, tables[path]):
            raise CheckpointError(f'{found.where}: the rows {name} and others of one table differ')
        numbers[path], tables[path] = _ids_of(found, given, module), values
        _check_rows(found, name, numbers[path], values, path)
    if not tables:
        raise CheckpointError(f'{found.where} holds no rows of an embedding')
    if found.model.untied and set(tables) == {found.names.table} and _HEAD in found.names.slots:
        # The rows were trained on a base where table and head are one.
        numbers[_HEAD], tables[_HEAD] = numbers[found.names.table], tables[found.names.table]
    for path in list(tables):
        if _takes_whole(found, path, numbers[path], tables[path]):
            del tables[path]
    groups: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
    for path, values in tables.items():
        groups.setdefault(numbers[path], {})[path] = values
    return [
        (trainable_tokens(ids, targets=literal(some)), Entry('trainable_tokens', some))
        for ids, some in groups.items()
    ]


def _path(found: Found, module: str) -> str:
    """The leaf of a table, whether it is looked up, a head, or both."""
    names = found.names
    if names.tied and module.removeprefix(ROOT) == names.tied_head:
        return names.table
    place = names.place_of_module(module)
    if place is None or place.slot.path not in (names.table, _HEAD):
        raise CheckpointError(
            f'{found.where} holds rows of {module.removeprefix(ROOT)}, but only the embedding and '
            f'the head can have rows{paths.nearby(module.removeprefix(ROOT), names.modules())}'
        )
    return place.slot.path


def _ids_of(found: Found, given: Any, module: str) -> tuple[int, ...]:
    """The tokens whose rows a module has."""
    if isinstance(given, dict):
        meant = [ids for name, ids in given.items() if f'.{module}'.endswith(f'.{name}')]
        tied = found.names.tied and module.removeprefix(ROOT) == found.names.tied_head
        given = meant[0] if meant else next(iter(given.values())) if tied and given else None
    if not isinstance(given, list) or not all(type(each) is int for each in given):
        raise CheckpointError(
            f'{found.config.where}: {str(given)[:80]} are not the tokens of one embedding'
        )
    return tuple(given)


def _check_rows(found: Found, name: str, ids: Sequence[int], values: np.ndarray, path: str) -> None:
    """Raises CheckpointError unless there is a row for each token, and each token is named once."""
    shape = found.names.slots[path].shape  # [vocabulary, features], of a head too
    if values.shape != (len(ids), shape[1]):
        raise CheckpointError(
            f'{found.where}: {name} is {values.shape}, and {len(ids)} tokens of {path!r} need '
            f'{(len(ids), shape[1])}'
        )
    if len(set(ids)) < len(ids) or min(ids, default=0) < 0:
        raise CheckpointError(
            f'{found.config.where}: the tokens {list(ids)[:8]} are not numbers from 0 on, each once'
        )


def _takes_whole(found: Found, path: str, ids: Sequence[int], rows: np.ndarray) -> bool:
    """Whether the file has the table around these rows, and it differs from the model's.

    If so, the table with these rows stays among the tensors, to be read as trained whole.
    """
    names = found.names
    modules = [f'{ROOT}{names.module(path, 0)}']
    if path == names.table and names.tied and names.tied_head is not None:
        modules.append(f'{ROOT}{names.tied_head}')
    copies = {m: found.tensors.pop(m + _TABLE) for m in modules if m + _TABLE in found.tensors}
    if not copies:
        return False
    first = next(iter(copies.values()))
    mine = paths.flatten(found.model.params)[path]
    table = mine.T if path == _HEAD else mine
    others = [each for each in copies.values() if not np.array_equal(each, first)]
    if others or first.shape != table.shape or max(ids, default=0) >= len(first):
        raise CheckpointError(
            f'{found.where} has tables {[each.shape for each in copies.values()]} around its rows, '
            f'but this model needs one of {table.shape}; write peftjax.load(..., vocab_size=...) '
            'with their number of tokens'
        )
    kept = np.setdiff1d(np.arange(len(first)), ids)
    if np.array_equal(first[kept], np.asarray(table, first.dtype)[kept]):
        return False
    whole = first.copy()
    whole[list(ids)] = rows
    found.tensors.update({f'{module}.weight': whole for module in modules})
    return True


def write_tokens(names: Names, rows: Sequence[Rows]) -> Written:
    """Rows without a method beside them."""
    numbers = {each.ids for each in rows}
    if len(numbers) > 1:
        raise ValueError(
            'a file of peft for tokens alone has the same tokens for every table, here are '
            f'{sorted(numbers)[:2]}; chain them with a method, whose file has tokens of each'
        )
    modules = {
        names.module(each.path, 0): np.asarray(each.values) for each in _checked(names, rows)
    }
    tensors = {f'{ROOT}{module}{_ROWS}': values for module, values in modules.items()}
    if names.tied and names.tied_head is not None:
        tensors[f'{ROOT}{names.tied_head}{_ROWS}'] = np.asarray(rows[0].values)
    return tensors, {
        **common(names, 'TRAINABLE_TOKENS', sorted(modules)),
        'token_indices': list(map(int, numbers.pop())),
    }


def write_tokens_beside(names: Names, rows: Sequence[Rows]) -> Written:
    """Tensors and fields that rows add to the file of a method."""
    tensors, numbers = {}, {}
    for each in _checked(names, rows):
        module = names.module(each.path, 0)
        tensors[f'{ROOT}{module}.token_adapter{_ROWS}'] = np.asarray(each.values)
        numbers[module.rpartition('.')[2]] = list(map(int, each.ids))
    return tensors, {'trainable_token_indices': numbers} if numbers else {}


def _checked(names: Names, rows: Sequence[Rows]) -> Sequence[Rows]:
    """The rows that a file has.

    Raises:
        ValueError: two sets of rows for one table; different rows for an embedding and a head that
            the library ties.
    """
    by_path = {each.path: each for each in rows}
    if len(by_path) < len(rows):
        raise ValueError('peft has rows of one list of tokens for a table; chain them as one')
    if not names.untied or not rows:
        return rows
    table, head = by_path.get(names.table), by_path.get(_HEAD)
    if (
        table is None
        or head is None
        or table.ids != head.ids
        or not np.array_equal(np.asarray(table.values), np.asarray(head.values))
    ):
        raise ValueError(
            'rows of an embedding and of a head that the checkpoint ties are the same in peft; '
            'load the model without tie=False, or save it with peftjax.save_checkpoint and adapt '
            'that'
        )
    return [table]
