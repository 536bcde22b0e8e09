"""Every published row launches on a tiny checkpoint of its family, with data in its layout."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import peftjax
from peftjax import reproduce
from peftjax.reproduce import Row
from peftjax.train.build import build
from peftjax.train.engine import Alone
from peftjax.train.placement import Placement
from peftjax.train.settings import Settings
from peftjax.train.task import Task
from peftjax.train.tasks.infer import infer
from tests import paper_files

ROWS = reproduce.table(Path(__file__).parents[1] / 'configs' / 'papers.toml')
# Rows that no weights and no data would make run.
NOT_BUILT = {
    key: lines
    for key, row in ROWS.items()
    if (lines := [m for m in reproduce.missing(row) if m.startswith(('model family', 'method'))])
}
BUILT = [key for key in ROWS if key not in NOT_BUILT]
# What a row shares with a tiny model only in a smaller size.
SMALLER = {
    'trainable_tokens.llama': {'trainable_tokens.ids': [4, 5]},
    'intrinsic.d500k': {'intrinsic.dimension': 5000},
    'intrinsic.d20k': {'intrinsic.dimension': 2000},
}


@pytest.fixture(scope='session')
def shelf(tmp_path_factory):
    """Where checkpoints and data sets are made, each when it is asked for first."""
    return tmp_path_factory.mktemp('papers')


def tiny_settings(row: Row, shelf: Path) -> Settings:
    """The settings of a row for a tiny checkpoint, rows of at most 48 tokens, and one step."""
    reader = row.settings.data.reader
    data, model = shelf / reader, shelf / row.family
    if not model.exists():
        paper_files.checkpoint(model, row.family)
    found: dict[str, Any] = {
        'data.source': str(data / '{split}.jsonl'),
        **(_written(data, reader)),
        'model.source': str(model),
        'data.batch_size': 2,
        'data.eval_batch_size': 4,
        'data.lengths': [48],
        'trackers': [],
        'duration': '1 steps',
    }
    options = dict(row.settings.data.options)
    if 'generated' in options:
        options |= {'generated_limit': 2, 'max_new_tokens': 3}
    if 'shots' in options:
        options['shots'] = 8
    found['data.options'] = options
    return reproduce.settings_of(row, 0, {**found, **SMALLER.get(row.key, {})})


@functools.cache
def _written(folder: Path, reader: str) -> dict[str, Any]:
    return paper_files.write(folder, reader)


@functools.cache
def _base(source: str, head: str, labels: int | None) -> peftjax.Model:
    return peftjax.load(source, task=head, num_labels=labels, key=jax.random.key(0))


def _rows():
    """All rows that can be built; those behind the first of each task and data set are slow.

    By default a quarter of the first ones run, by the mark `sampled`.
    """
    seen = set()
    for key in BUILT:
        settings = ROWS[key].settings
        kind = settings.task, settings.data.source, settings.model.task
        yield pytest.param(key, marks=[pytest.mark.slow] if kind in seen else [])
        seen.add(kind)


@pytest.mark.sampled
@pytest.mark.parametrize('key', list(_rows()))
def test_a_row_takes_a_step_and_is_scored(key, shelf):
    settings = infer(tiny_settings(ROWS[key], shelf))
    model = _base(settings.model.source, settings.model.task, settings.model.num_labels)
    run = build(settings, model)
    state, beside = run.start()
    # Numbers are arguments of the program where they can be, so that many rows share one.
    traced = settings.optimizer == 'adamw'
    engine = Alone(run, state, beside, Placement(None), traced=traced)
    before = jax.tree.map(np.asarray, state.adapter)
    [(_, metrics)] = engine.step(next(iter(engine.batches())).rows)
    assert np.isfinite(metrics['loss']) and metrics['grad_norm'] > 0
    after = engine.state(0).adapter
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), before, after)
    assert any(jax.tree.leaves(moved))
    scores = _scores(engine, run.task)
    published = ROWS[key].published
    if published.value is not None:
        result = {f'best/{n}': v for n, v in scores.items()} | scores
        assert -1 <= reproduce.score(ROWS[key], result) <= 100


def _scores(engine: Alone, task: Task) -> dict[str, float]:
    found = {}
    for split in task.splits:
        if split != 'train':
            scores = engine.score(split).scores(0)
            for evaluator in task.evaluators:
                scores |= evaluator(engine.trained(0), split)
            found |= {f'{split}/{name}': value for name, value in scores.items()}
    return found


def test_most_rows_launch_and_the_others_name_what_is_missing():
    families = [key for key in NOT_BUILT if ROWS[key].family in ('deberta-v2', 'bart')]
    assert len(families) == 24
    assert sorted(NOT_BUILT.keys() - set(families)) == [
        'prompt_tuning.rte',
        'prompt_tuning.superglue',
    ]
    assert len(ROWS) == 130 and len(BUILT) == 104
