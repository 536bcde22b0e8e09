"""The table of published results: rows that say what was run, and the number that came out."""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjax.train.settings import Settings, SettingsError, read_settings

PARTS = 'parts'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a number was published: a paper with its table, or the address of another source."""

    title: str
    authors: str = ''
    arxiv: str = ''
    url: str = ''
    table: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the number was measured.

    Attributes:
        seeds: how many runs.
        statistic: over the seeds: 'median' or 'mean'; 'one' is a single run.
        checkpoint: that is scored: 'best' on the validation split, or 'last'.
        start: the row whose best adapter each run starts from, such as 'lora.mnli'.
    """

    seeds: int = 1
    statistic: str = 'one'
    checkpoint: str = 'last'
    start: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """The published number.

    Attributes:
        split, metric: of the run. A split 'test_*' is the mean over all splits that match.
        value: as printed; None where no number could be read.
        spread: as printed, and spread_of: what it is.
        percent: whether the value is in per cent; scores of a run are fractions.
        trainable: parameters besides a new head; None where they are not given as a whole number,
            or not in a form that can be recomputed.
    """

    split: str = 'test'
    metric: str = 'accuracy'
    value: float | None = None
    spread: float | None = None
    spread_of: str = ''
    percent: bool = False
    trainable: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A published result and the run that should give it.

    Attributes:
        key: of the row, such as 'lora.rte'.
        paper: where the number was published.
        hyperparameters: where they were published.
        differs: what is not as in the paper.
        family: `model_type` of the checkpoint.
        data_from: where data are to be had that are not on the hub.
        protocol, published: see there.
        settings: of a run.
        start: the row that `protocol.start` names.
    """

    key: str
    paper: Paper
    hyperparameters: str
    differs: tuple[str, ...]
    family: str
    data_from: str
    protocol: Protocol
    published: Published
    settings: Settings
    start: 'Row | None' = None


def table(path: str | Path) -> dict[str, Row]:
    """The rows of a table in TOML, by their keys.

    A row takes the parts that its field `like` names, the later ones over the earlier ones, and
    then its own fields. `configs/papers.toml` says what the fields are.

    Raises:
        SettingsError: a file that is not there or not TOML, a part that is not there, a field that
            nothing reads, or a value of another type; by row.

    Example:
        >>> rows = table('configs/papers.toml')
        >>> rows['lora.rte'].published.value, rows['lora.rte'].settings.lr
        (86.6, 0.0005)
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise SettingsError(
            f'no table of papers at {path} ({error.strerror}): start in the folder of the '
            'repository, or give the file with --papers'
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f'{path} is not TOML: {error}') from None
    parts = _mapping(content.pop(PARTS, {}), f'{path}: {PARTS}')
    rows: dict[str, Row] = {}
    for method, found in content.items():
        for name, fields in _mapping(found, f'{path}: {method}').items():
            key = f'{method}.{name}'
            where = f'{path}, {key}'
            rows[key] = _row(key, _whole(_mapping(fields, where), parts, where), where)
    return {key: _started(row, rows, path) for key, row in rows.items()}


def find(rows: Mapping[str, Row], key: str) -> Row:
    """A row by its key.

    Raises:
        SettingsError: there is none, with near keys.
    """
    if key not in rows:
        near = difflib.get_close_matches(key, rows, n=5, cutoff=0)
        raise SettingsError(f'no row {key!r}; near ones: {", ".join(near)}')
    return rows[key]


def settings_of(row: Row, seed: int, changes: Mapping[str, Any] | None = None) -> Settings:
    """The settings of one run of a row.

    Args:
        row: of a table.
        seed: of the run.
        changes: further settings by dotted names, such as `{'data.source': 'RTE'}`.

    Raises:
        SettingsError: see `Settings.change`.
    """
    return row.settings.change({'seed': seed, **(changes or {})})


def _whole(fields: Mapping[str, Any], parts: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row's fields with those of its parts."""
    made: dict[str, Any] = {}
    for name in fields.get('like', ()):
        if name not in parts:
            near = difflib.get_close_matches(name, parts, n=3, cutoff=0)
            raise SettingsError(f'{where}: no part {name!r}; near ones: {", ".join(near)}')
        made = _over(made, _mapping(parts[name], f'{PARTS}.{name}'))
    made = _over(made, fields)
    made.pop('like', None)
    return made


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Fields over others; `differs` of both count."""
    made = dict(below)
    for name, value in above.items():
        held = made.get(name)
        if isinstance(value, dict) and isinstance(held, dict):
            made[name] = _over(held, value)
        else:
            made[name] = [*held, *value] if name == 'differs' and held else value
    return made


def _row(key: str, fields: dict[str, Any], where: str) -> Row:
    paper, protocol, published = (
        _read(kind, _mapping(fields.pop(name, {}), f'{where}: {name}'), f'{where}: {name}')
        for name, kind in (('paper', Paper), ('protocol', Protocol), ('published', Published))
    )
    if protocol.statistic not in ('one', 'median', 'mean') or protocol.seeds < 1:
        raise SettingsError(
            f"{where}: protocol.statistic is 'one', 'median' or 'mean', of at least one seed"
        )
    if protocol.checkpoint not in ('best', 'last'):
        raise SettingsError(f"{where}: protocol.checkpoint is 'best' or 'last'")
    texts = {name: fields.pop(name, '') for name in ('hyperparameters', 'family', 'data_from')}
    differs = fields.pop('differs', [])
    try:
        settings = read_settings(fields)
    except SettingsError as error:
        raise SettingsError(f'{where}: {error}') from None
    return Row(
        key=key,
        paper=paper,
        differs=tuple(differs),
        protocol=protocol,
        published=published,
        settings=settings,
        **texts,
    )


def _started(row: Row, rows: Mapping[str, Row], path: Path) -> Row:
    """The row with the one that it starts from."""
    name = row.protocol.start
    if name is None:
        return row
    if name not in rows or rows[name].protocol.start is not None:
        raise SettingsError(
            f'{path}, {row.key}: protocol.start names {name!r}, which is no row that starts afresh'
        )
    return dataclasses.replace(row, start=rows[name])


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f'{where} is {str(value)[:60]!r}; it holds fields with values')
    return value


def _read(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass of plain values, each checked against its type."""
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise SettingsError(f'{where}: no field {name!r}; there are {", ".join(hints)}')
        hint = hints[name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise SettingsError(f'{where}: {name} does not take {value!r}')
    needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    if absent := [name for name in needed if name not in values]:
        raise SettingsError(f'{where}: no {absent[0]}')
    return kind(**values)
