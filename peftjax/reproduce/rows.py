"""The table of published results: each row has the settings of a run and the published number."""

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
    """Where a number was published: a paper and its table, or another source by its address."""

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
        statistic: over the seeds: 'median' or 'mean'; 'one' for a single run.
        checkpoint: the scored checkpoint: 'best' on the validation split, or 'last'.
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
        split, metric: of the run. For a split 'test_*', the score is the mean over all splits that
            match.
        value: as printed; None if no number could be read.
        spread: as printed.
        spread_of: the kind of spread.
        percent: whether the value is in per cent; scores of a run are fractions.
        trainable: the number of trained parameters without a new head; None if the source gives no
            whole number, or none that can be recomputed.
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
    """A published result and the run that repeats it.

    Attributes:
        key: of the row, such as 'lora.rte'.
        paper: where the number was published.
        hyperparameters: where the hyperparameters were published.
        differs: how the run differs from the paper.
        family: `model_type` of the checkpoint.
        data_from: the source of data that are not on the hub.
        protocol: how the number was measured.
        published: the number.
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

    The field `like` of a row names parts, whose fields the row takes over. Later parts override
    earlier ones, and the row's own fields override all parts. `configs/papers.toml` explains the
    fields.

    Raises:
        SettingsError: the file does not exist or is not TOML; a part does not exist, a field is
            unknown, or a value has another type, by row.

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
        SettingsError: there is no row with this key; the message suggests near ones.
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
        changes: other settings by dotted names, such as `{'data.source': 'RTE'}`.

    Raises:
        SettingsError: a change does not fit, see `Settings.change`.
    """
    return row.settings.change({'seed': seed, **(changes or {})})


def _whole(fields: Mapping[str, Any], parts: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a row, including those of its parts."""
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
    """`below` overridden by `above`; the lists `differs` of both are joined."""
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
            f'{where}: protocol has statistic {protocol.statistic!r} and seeds {protocol.seeds}; '
            "write 'one', 'median' or 'mean', and at least 1"
        )
    if protocol.checkpoint not in ('best', 'last'):
        raise SettingsError(
            f'{where}: protocol.checkpoint is {protocol.checkpoint!r}; write best or last'
        )
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
    """The row, with `start` set to the row that `protocol.start` names."""
    name = row.protocol.start
    if name is None:
        return row
    if name not in rows or rows[name].protocol.start is not None:
        raise SettingsError(
            f'{path}, {row.key}: protocol.start is {name!r}; name a row that has no start itself'
        )
    return dataclasses.replace(row, start=rows[name])


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f'{where} is {str(value)[:60]!r}; write fields with values')
    return value


def _read(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from plain values, each checked against its type."""
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise SettingsError(f'{where}: no field {name!r}; there are {", ".join(hints)}')
        hint = hints[name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise SettingsError(
                f'{where}: {name} does not take {value!r}; its type is '
                f'{getattr(hint, "__name__", hint)}'
            )
    needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    if absent := [name for name in needed if name not in values]:
        raise SettingsError(f'{where}: {absent[0]} is missing')
    return kind(**values)
