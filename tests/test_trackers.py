"""Where numbers of a run go: each tracker holds each number once, whatever stopped the run."""

import json
import re
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from peftjax.train.progress import step_progress
from peftjax.train.trackers import registry
from peftjax.train.trackers.log import read_metrics
from peftjax.train.trackers.registry import TRACKERS, find_tracker, trackers_of

SETTINGS = {'lr': 0.001, 'lora': {'rank': 4, 'targets': ['q', 'v']}, 'init_from': None}
# What two starts of one run write, and where the second begins.
FIRST = [(2, {'train/loss': 0.9}), (4, {'train/loss': 0.8}), (4, {'validation/loss': 0.85})]
FIRST += [(6, {'train/loss': 0.7})]
RESUMED_FROM = 4
SECOND = [(6, {'train/loss': 0.7}), (8, {'train/loss': 0.6}), (8, {'test/loss': 0.65})]
EXPECTED = {
    ('train/loss', 2): 0.9,
    ('train/loss', 4): 0.8,
    ('validation/loss', 4): 0.85,
    ('train/loss', 6): 0.7,
    ('train/loss', 8): 0.6,
    ('test/loss', 8): 0.65,
}


def two_starts(name: str, workdir: Path) -> None:
    """A run that stops behind step 6 and resumes from 4, and is started once more at its end."""
    workdir.mkdir()
    for rows, resumed_from in ((FIRST, 0), (SECOND, RESUMED_FROM), (SECOND[-1:], 8)):
        opened = trackers_of((name,))
        opened.open(workdir, SETTINGS, resumed_from)
        for step, values in rows:
            opened.write(step, values)
        opened.close()


def numbers(found) -> dict[tuple[str, int], float]:
    """(name, step, value) as a mapping, each once."""
    made = {}
    for name, step, value in found:
        assert (name, step) not in made, f'{name} of step {step} stands there twice'
        made[name, step] = pytest.approx(value, rel=1e-6)
    return made


def test_json_lines_hold_each_number_once(tmp_path):
    two_starts('tensorboard', tmp_path / 'run')
    rows = read_metrics(tmp_path / 'run')
    found = [(n, r['step'], v) for r in rows for n, v in r.items() if n != 'step']
    assert numbers(found) == EXPECTED


def _records(content: bytes) -> list[bytes]:
    """The records of a TFRecord file: length, its checksum, content, its checksum."""
    found = []
    while content:
        (length,) = struct.unpack('<Q', content[:8])
        found.append(content[12 : 12 + length])
        content = content[16 + length :]
    return found


def test_tensorboard_shows_each_number_once(tmp_path):
    two_starts('tensorboard', tmp_path / 'run')
    shown = []
    read: Any = vars(event_pb2)['Event'].FromString  # the class is made when it is imported
    for path in sorted((tmp_path / 'run/tensorboard').iterdir()):
        for event in map(read, _records(path.read_bytes())):
            if event.session_log.status:
                # TensorBoard hides what an earlier writer wrote of this step and of later ones.
                shown = [each for each in shown if each[1] < event.step]
            shown += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    assert numbers(shown) == EXPECTED


def test_a_run_that_does_not_resume_is_a_new_run(tmp_path):
    two_starts('tensorboard', tmp_path / 'run')
    before = json.loads((tmp_path / 'run/trackers/tensorboard.json').read_text())
    opened = trackers_of(('tensorboard',))
    opened.open(tmp_path / 'run', SETTINGS, 0)
    opened.close()
    after = json.loads((tmp_path / 'run/trackers/tensorboard.json').read_text())
    assert after['id'] != before['id'] and after['last'] == {}
    assert read_metrics(tmp_path / 'run') == []


class Kept:
    """A tracker of one's own."""

    opened: list[tuple] = []

    def __init__(self, *given):
        self.opened.append(given)

    def write(self, step, values):
        self.opened.append((step, dict(values)))

    def close(self):
        self.opened.append(('closed',))


def test_a_tracker_of_ones_own_is_called_by_its_path(tmp_path):
    Kept.opened.clear()
    opened = trackers_of(('tests.test_trackers:Kept',))
    opened.open(tmp_path, SETTINGS, 3)
    opened.write(5, {'a': 1.0})
    opened.close()
    assert Kept.opened == [(tmp_path, SETTINGS, 3), (5, {'a': 1.0}), ('closed',)]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('wandbb', "no tracker 'wandbb'; near names: ['wandb'"),
        ('none.such:thing', "tracker 'none.such:thing' cannot be read: No module named 'none'"),
        ('json:none', "tracker 'json:none' cannot be read: "),
    ],
)
def test_a_tracker_that_is_not_there_is_named(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        trackers_of((name,))


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    known = TRACKERS['wandb']._replace(needs='none_such')
    monkeypatch.setattr(registry, 'TRACKERS', {**TRACKERS, 'wandb': known})
    with pytest.raises(ValueError, match=r"needs none_such.*'peftjax\[wandb\]'"):
        find_tracker('wandb')


def test_without_a_terminal_progress_is_lines(capsys):
    times = iter([100.0, 150.0, 180.0])
    with step_progress(
        Console(force_terminal=False, width=40), total=300, done=0, clock=lambda: next(times)
    ) as progress:
        for step in range(1, 301):
            progress.update(step, 'loss 0.6931  12,345 tokens/s' if step % 100 == 0 else None)
        progress.say('step 300: test/accuracy [0.5]')
    assert capsys.readouterr().out.splitlines() == [
        'step 100 of 300  loss 0.6931  12,345 tokens/s  1:41 left',
        'step 200 of 300  loss 0.6931  12,345 tokens/s  0:40 left',
        'step 300 of 300  loss 0.6931  12,345 tokens/s',
        'step 300: test/accuracy [0.5]',
    ]


def test_in_a_terminal_progress_is_a_bar(capsys):
    console = Console(force_terminal=True, width=120, color_system=None)
    with step_progress(console, total=10, done=4) as progress:
        progress.update(10, 'loss 0.1')
    text = capsys.readouterr().out
    assert '10/10' in text and 'loss 0.1' in text and '━' in text


# The libraries are large: `nox --session trackers` installs them, and fails where one is missing.


@pytest.mark.slow
def test_wandb_holds_each_number_once(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    record = pytest.importorskip('wandb.proto.wandb_internal_pb2').Record
    for name in ('WANDB_MODE', 'WANDB_PROJECT'):
        monkeypatch.delenv(name, raising=False)
    two_starts('wandb', tmp_path / 'run')
    files = list((tmp_path / 'run/wandb').glob('offline-run-*/run-*.wandb'))
    identity = json.loads((tmp_path / 'run/trackers/wandb.json').read_text())['id']
    assert {path.name for path in files} == {f'run-{identity}.wandb'}
    found, configs = [], []
    for path in sorted(files, key=lambda each: each.parent.name):
        for each in map(record.FromString, _leveldb_records(path.read_bytes())):
            if each.HasField('history'):
                row = {i.key or '/'.join(i.nested_key): i.value_json for i in each.history.item}
                step = json.loads(row['_step'])
                found += [(n, step, json.loads(v)) for n, v in row.items() if n[0] != '_']
            if each.HasField('run'):
                configs.append({i.key: json.loads(i.value_json) for i in each.run.config.update})
    assert numbers(found) == EXPECTED
    assert SETTINGS.items() <= configs[0].items()


def _leveldb_records(content: bytes) -> list[bytes]:
    """The records of a log in LevelDB's format, behind a header of seven bytes."""
    found, place = [b''], 7
    while place + 7 <= len(content):
        _, length, kind = struct.unpack('<IHB', content[place : place + 7])
        if kind in (1, 2):  # whole, or the first part of several
            found.append(b'')
        found[-1] += content[place + 7 : place + 7 + length]
        place += 7 + length
        left = 32768 - place % 32768
        place += left if left < 7 else 0
    return found[1:]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::ResourceWarning')
def test_mlflow_holds_each_number_once(tmp_path, monkeypatch):
    pytest.importorskip('mlflow')
    client = pytest.importorskip('mlflow.tracking').MlflowClient
    for name in ('MLFLOW_TRACKING_URI', 'MLFLOW_EXPERIMENT_NAME'):
        monkeypatch.delenv(name, raising=False)
    two_starts('mlflow', tmp_path / 'run')
    store = client(f'sqlite:///{tmp_path / "run/mlflow.db"}')
    (run,) = store.search_runs([store.get_experiment_by_name('peftjax').experiment_id])
    found = [
        (name, point.step, point.value)
        for name in run.data.metrics
        for point in store.get_metric_history(run.info.run_id, name)
    ]
    assert numbers(found) == EXPECTED
    assert run.info.status == 'FINISHED' and run.info.run_name == 'run'
    assert run.data.params['lora.rank'] == '4' and run.data.params['lora.targets'] == '["q", "v"]'


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::ResourceWarning')
def test_trackio_holds_each_number_once(tmp_path, monkeypatch):
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
    monkeypatch.delenv('TRACKIO_PROJECT', raising=False)
    pytest.importorskip('trackio')
    two_starts('trackio', tmp_path / 'run')
    identity = json.loads((tmp_path / 'run/trackers/trackio.json').read_text())['id']
    with sqlite3.connect(tmp_path / 'trackio/peftjax.db') as database:
        rows = database.execute('select run_name, step, metrics from metrics').fetchall()
    assert {run for run, _, _ in rows} == {f'run-{identity}'}
    found = [(n, step, v) for _, step, row in rows for n, v in json.loads(row).items()]
    assert numbers(found) == EXPECTED
