"""Reads what a run left in its work folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import peftjax
from peftjax.interop.files.bounded_json import read_object
from peftjax.train.artifacts import RESULT, read_result
from peftjax.train.build import build_model, build_task
from peftjax.train.files import readable
from peftjax.train.member import ADAPTER, LAST
from peftjax.train.placement import Placement
from peftjax.train.settings import Settings, SettingsError, read_settings
from peftjax.train.task import Task
from peftjax.train.wholeness import differences

Which = Literal['best', 'last']


def check_is_same(folder: Path, description: Mapping[str, Any]) -> None:
    """Checks that a folder holds no run with other settings.

    Raises:
        ValueError: it holds a run with other settings, which the message names, or a sweep.
    """
    if (folder / 'sweep.json').exists():
        raise ValueError(f'{folder} holds a sweep: choose another --workdir')
    left = [name for name in (RESULT, ADAPTER, LAST) if (folder / name).exists()]
    file = folder / 'config.json'
    if not left or not file.exists():
        return
    changed = differences(read_object(file), json.loads(json.dumps(description)))
    if changed:
        raise ValueError(
            f'{folder} holds {left[0]} of a run with other settings ({"; ".join(changed)}): choose '
            'another --workdir, or give the same settings'
        )


class RunFolder:
    """A work folder of `peftjax.train.train` or of one run of a sweep.

    Attributes:
        path: of the folder.
        settings: of the run.

    Raises:
        SettingsError: the folder holds no run, or the run of a model of your own, which no settings
            describe.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        file = self.path / 'config.json'
        if not file.is_file():
            raise SettingsError(f'{self.path} is no work folder of a run: it has no config.json')
        try:
            content = read_object(file)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        if 'model' not in content and not (self.path / ADAPTER).is_dir():
            raise SettingsError(
                f'{self.path} is no work folder of a run: its config.json names no model, and it '
                'holds no adapter'
            )
        if 'model' not in content:
            raise SettingsError(
                f'{self.path} holds a run of a model of your own; wrap the model again, and read '
                f'the adapter with peftjax.restore({str(self.path / ADAPTER)!r}, model)'
            )
        try:
            self.settings: Settings = read_settings(content)
        except SettingsError as error:
            raise SettingsError(readable(f'{file}: {error}')) from None

    @staticmethod
    def is_one(path: str | Path) -> bool:
        """Whether a folder looks like the work folder of a run."""
        return (Path(path) / 'config.json').is_file() and (Path(path) / ADAPTER).is_dir()

    @property
    def result(self) -> dict[str, object]:
        """The result of the run; empty if the run is not over."""
        return read_result(self.path) or {}

    def load_model(self) -> peftjax.Model:
        """The base; a new head has the values that the run began with."""
        return build_model(self.settings, Placement(None))

    def load_task(self, model: peftjax.Model, *, data: bool = True) -> Task:
        """The task; data=False reads no data, which predictions do not need."""
        settings = self.settings if data else self.settings.change({'data.source': ''})
        return build_task(settings, model)

    def load_adapter(
        self, model: peftjax.Model, which: Which = 'best', *, allow_non_finite: bool = False
    ) -> peftjax.Restored:
        """The method, the adapter, and the frozen parameters.

        allow_non_finite: see `peftjax.restore`.

        Raises:
            SettingsError: the run has not written this adapter yet.
            CheckpointError: the files of the adapter are damaged, or of another base.
        """
        folder = self.path / {'best': ADAPTER, 'last': LAST}[which]
        if not folder.is_dir():
            raise SettingsError(f'{self.path} has no {folder.name}/ yet: the run is not that far')
        return peftjax.restore(folder, model, allow_non_finite=allow_non_finite)
