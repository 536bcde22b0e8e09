"""MLflow, in a file of the work folder unless the environment names a server."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftjax.train.optional import library
from peftjax.train.trackers.memory import Memory

_LONGEST = 500  # characters of a parameter that every kind of store takes


def mlflow(workdir: Path, settings: Mapping[str, Any], resumed_from: int) -> '_MLflow':
    """Writes to `<workdir>/mlflow.db`: mlflow ui --backend-store-uri sqlite:///runs/a/mlflow.db

    MLFLOW_TRACKING_URI names another store or a server, MLFLOW_EXPERIMENT_NAME the experiment.
    Settings longer than 500 characters are cut there.
    """
    return _MLflow(workdir, settings, resumed_from)


class _MLflow:
    def __init__(self, workdir: Path, settings: Mapping[str, Any], resumed_from: int):
        tracking = library('mlflow.tracking', 'mlflow', "the tracker 'mlflow'")
        here = f'sqlite:///{(workdir / "mlflow.db").resolve()}'
        self._client = tracking.MlflowClient(os.environ.get('MLFLOW_TRACKING_URI', here))
        self._memory = Memory(workdir, 'mlflow', resumed_from)
        if not self._memory.resumed:
            self._memory.note(run=self._begin(workdir, settings))
        self._run: str = self._memory.noted['run']
        self._client.update_run(self._run, status='RUNNING')

    def _begin(self, workdir: Path, settings: Mapping[str, Any]) -> str:
        """A new run in the experiment; its id."""
        name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'peftjax')
        experiment = self._client.get_experiment_by_name(name)
        folder = (workdir / 'mlflow_artifacts').resolve().as_uri()
        number = (
            self._client.create_experiment(name, artifact_location=folder)
            if experiment is None
            else experiment.experiment_id
        )
        run = self._client.create_run(number, run_name=workdir.name).info.run_id
        for field, value in _flat(settings, ''):
            self._client.log_param(run, field, value[:_LONGEST])
        return run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        new = self._memory.unsent(step, values)
        for name, value in new.items():
            self._client.log_metric(self._run, name, value, step=step)
        self._memory.sent(step, new)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    """Dotted names of settings and their values as text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value if isinstance(value, str) else json.dumps(value)
