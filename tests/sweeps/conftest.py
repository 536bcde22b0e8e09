"""A config, and what tests of sweeps make once: traces, runs of single rows, a whole sweep."""

import pytest

from peftjax.sweep import groups
from tests import tiny_runs
from tests.tiny_sweeps import TWO, rows_of, run
from tests.whole_runs import run_config


@pytest.fixture(scope='package')
def base(tmp_path_factory):
    config = tiny_runs.film_reviews(tmp_path_factory.mktemp('reviews'))
    config.eval_every, config.save_every = '2 steps', '4 steps'
    return config


@pytest.fixture
def config(base):
    return base.copy_and_resolve_references()


@pytest.fixture(scope='package')
def shelf():
    return groups._Shelf()


@pytest.fixture(scope='package')
def traced():
    return {}


@pytest.fixture
def rows_are_traced_once(shelf, traced, monkeypatch):
    """Tests with rows alike share what `prepare` makes of them, which is never changed."""
    trace = groups._ready

    def ready(row, run):
        text = repr(row.settings)
        if text not in traced:
            traced[text] = trace(row, run)
        return traced[text]._replace(row=row)

    monkeypatch.setattr(groups, '_Shelf', lambda: shelf)
    monkeypatch.setattr(groups, '_ready', ready)


@pytest.fixture(scope='package')
def alone(tmp_path_factory):
    """The folder of a row's run by itself, which tests with the same row share."""
    folders = {}

    def folder_of(settings):
        text = repr(settings)
        if text not in folders:
            folders[text] = tmp_path_factory.mktemp('alone')
            run_config(settings.to_dict(), folders[text])
        return folders[text]

    return folder_of


@pytest.fixture(scope='package')
def whole(base, tmp_path_factory):
    """The folder of a sweep of two rows that nothing stopped."""
    folder = tmp_path_factory.mktemp('whole') / 'sweep'
    run(rows_of(base.copy_and_resolve_references(), *TWO), folder)
    return folder
