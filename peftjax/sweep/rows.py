"""The rows of a sweep: the runs that `sweep_<name>(add)` of a config file adds."""

import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from peftjax.sweep.modules import function_of
from peftjax.train.settings import Settings, SettingsError
from peftjax.train.tasks.infer import infer


class SweepRun(NamedTuple):
    """One run of a sweep.

    Attributes:
        name: of its folder: its number in the sweep.
        changes: what it changes, `{'lora.rank': 4}`.
        settings: after the changes.
    """

    name: str
    changes: dict[str, Any]
    settings: Settings


def expand(module: ModuleType, sweep: str, settings: Settings) -> list[SweepRun]:
    """The rows of a sweep.

    A config file has `def sweep_rank(add): add(seed=1, **{'lora.rank': 4})`, one call for each row.
    Fields have dotted names: those of the settings, and arguments of functions in use.

    Raises:
        ValueError: an unknown sweep; a sweep without rows; an unknown field or a value of another
          type; two equal rows. The message names the row and what to write instead.

    Example:
        >>> from configs import lora_sentiment
        >>> from peftjax.train.settings import read_settings
        >>> rows = expand(lora_sentiment, 'rank', read_settings(lora_sentiment.get_config()))
        >>> len(rows), rows[0].changes
        (12, {'seed': 0, 'lora.rank': 2})
    """
    add_rows = function_of(module, 'sweep', sweep)
    rows: list[SweepRun] = []
    changer = Changer(settings)

    def add(**changes: Any) -> None:
        name = f'{len(rows):03d}'
        rows.append(SweepRun(name, changes, changer.changed(changes, name)))

    add_rows(add)
    if not rows:
        raise ValueError(f'sweep {sweep!r} of {module.__name__} adds no run; call add(...) in it')
    first: dict[str, str] = {}
    for row in rows:
        text = json.dumps(row.settings.to_dict(), sort_keys=True)
        if text in first:
            raise ValueError(f'runs {first[text]} and {row.name} are the same: {row.changes}')
        first[text] = row.name
    return rows


class Changer:
    """Makes the settings of each run: its changes, and the settings that the data decide.

    Columns, classes, lengths and the training of a new head are found as `peftjax train` finds
    them: once for all runs that leave model, data, task and methods as they are.

    Args:
        settings: that all runs change.
    """

    def __init__(self, settings: Settings):
        self._given = settings
        self._found: Settings | None = None

    def changed(self, changes: Mapping[str, Any], row: str) -> Settings:
        """Settings with the changes of a run.

        Raises:
            ValueError: an unknown field, a value of another type, or data that cannot be read.
        """
        try:
            whole = self._given.change(changes)
            if _DECIDING.intersection(name.partition('.')[0] for name in changes):
                return infer(whole)
            if self._found is None:
                self._found = infer(self._given)
            return self._found.change(changes)
        except SettingsError as error:
            raise ValueError(f'run {row}: {error}') from None


_DECIDING = {'model', 'data', 'task', 'methods'}
