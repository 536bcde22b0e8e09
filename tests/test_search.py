"""Search: draws that learn from results, the same however often they are interrupted."""

import copy
import json
import math
import sys
from types import ModuleType
from typing import Any

import optuna
import pytest
from rich.console import Console

from configs import lora_sentiment
from peftjax.sweep.asynchronous import AsynchronousHalving
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.pruning import Halving, Rung, either, nobody
from peftjax.sweep.run import Sweep
from peftjax.sweep.search import Search
from peftjax.train.settings import read_settings
from tests import tiny_runs
from tests.whole_runs import without_rates

SCORE = 'validation/accuracy'
MEASURED = 'steps_per_second', 'tokens_per_second', 'peak_memory_mib'


def draw_rates(trial):
    return {
        'lr': trial.suggest_float('lr', 1e-4, 1e-2, log=True),
        'lora.rank': trial.suggest_categorical('lora.rank', (2, 4)),
    }


CONFIG: Any = lora_sentiment.get_config()
SETTINGS = read_settings(CONFIG)


def search_of(draw=draw_rates, settings=SETTINGS, sampler='tpe', seed=0, score=SCORE):
    module = ModuleType('config_of_a_test')
    vars(module)['search_rates'] = draw
    return Search(module, 'rates', settings, sampler, score, seed)


class Pretended:
    """A `Sweep` whose runs reach 1 - |log10(rate) + 3| / 2 in ten steps, scored after each."""

    name = SCORE

    def __init__(self, path, diverging=()):
        self.folder, self.diverging, self.ran = SweepFolder(path), diverging, []

    def run(self, rows, prune, wait):
        assert wait
        left = {row.name: row for row in rows if self.folder.result(row.name) is None}
        self.ran.append(list(left))
        of = len(left)
        for row in rows:
            (self.folder.runs / row.name).mkdir(parents=True, exist_ok=True)
        for name in set(left) & set(self.diverging):
            self._end(left.pop(name), {'status': 'diverged', 'diverged_at': 1, 'steps': 0})
        for step in range(1, 11):
            scores = {name: {self.name: self.score(row, step)} for name, row in left.items()}
            for name, values in scores.items():
                with (self.folder.runs / name / 'metrics.jsonl').open('a') as file:
                    file.write(json.dumps({'step': step, **values}) + '\n')
            stopped = prune(Rung(step, step, of, scores)) if step < 10 else set(left)
            for name in stopped:
                status = 'pruned' if step < 10 else 'done'
                self._end(left.pop(name), {'status': status, 'steps': step, **scores[name]})

    def score(self, row, step):
        return (1 - abs(math.log10(row.settings.lr) + 3) / 2) * step / 10

    def ended(self, name):
        result = self.folder.result(name)
        assert result is not None, name
        return result

    def _end(self, row, result):
        file = self.folder.runs / row.name / 'result.json'
        file.write_text(json.dumps(result), encoding='utf-8')


def drawn(rows):
    return [(row.name, row.changes) for row in rows]


def test_random_rows_are_those_of_optuna(tmp_path):
    rows = search_of(sampler='random', seed=3).run(Pretended(tmp_path), 6, 4, nobody)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    assert drawn(rows) == [(f'{n:03d}', draw_rates(study.ask())) for n in range(6)]
    assert [row.settings.lr for row in rows] == [row.changes['lr'] for row in rows]


def test_later_waves_learn_and_an_interrupted_search_goes_on_alike(tmp_path):
    whole = Pretended(tmp_path / 'whole')
    rows = search_of().run(whole, 40, 10, nobody)
    assert [len(names) for names in whole.ran] == [10, 10, 10, 10]
    score = [whole.score(row, 10) for row in rows]
    assert sum(score[20:]) / 20 > sum(score[:10]) / 10 + 0.1
    broken = Pretended(tmp_path / 'broken')
    search_of().run(broken, 20, 10, nobody)
    again = search_of().run(broken, 40, 10, nobody)
    assert drawn(again) == drawn(rows)
    assert [len(names) for names in broken.ran] == [10, 10, 0, 0, 10, 10]
    assert (
        drawn(search_of(seed=1).run(Pretended(tmp_path / 'other'), 2, 2, nobody)) != drawn(rows)[:2]
    )


def test_the_study_is_told_what_became_of_rows(tmp_path):
    """Scores as they were reported, who was stopped, who diverged; the median stops bad rows."""
    search, sweep = search_of(), Pretended(tmp_path, diverging=('001',))
    median = search.below_median(sweep.folder)

    def as_in_a_task(rung):
        """Another process gets a copy of the pruner, and of the study in it."""
        return copy.deepcopy(median)(rung)

    rows = search.run(sweep, 24, 8, as_in_a_task)
    trials = search._study.get_trials()
    states = [trial.state.name for trial in trials]
    assert states[1] == 'FAIL' and states[:1] + states[2:8] == ['COMPLETE'] * 7
    assert 'PRUNED' in states[8:]
    for trial, row in zip(trials, rows, strict=True):
        result = sweep.ended(row.name)
        steps = range(1, result['steps'] + 1)
        assert trial.intermediate_values == {n: sweep.score(row, n) for n in steps}
        if trial.state.name == 'COMPLETE':
            assert trial.value == sweep.score(row, 10)
    halved = Pretended(tmp_path / 'halved')
    search_of().run(halved, 8, 8, either([Halving(2, SCORE)]))
    results = [halved.ended(f'{n:03d}') for n in range(8)]
    assert sorted(each['steps'] for each in results) == [1, 1, 1, 1, 2, 2, 4, 10]


def test_a_score_of_which_the_least_is_the_best(tmp_path):
    """Runs that log a score the other way round are drawn and stopped alike."""

    class Wrong(Pretended):
        name = 'validation/wrong'

        def score(self, row, step):
            return -super().score(row, step)

    right, wrong = Pretended(tmp_path / 'right'), Wrong(tmp_path / 'wrong')
    rows = search_of().run(right, 24, 8, Halving(2, SCORE))
    other = search_of(score='-wrong').run(wrong, 24, 8, Halving(2, '-wrong'))
    assert drawn(rows) == drawn(other)
    for row in rows:
        assert right.ended(row.name)['status'] == wrong.ended(row.name)['status']
    with pytest.raises(ValueError, match='run 000 has no validation/f1: give --score one of valid'):
        search_of(score='f1').run(Pretended(tmp_path / 'none'), 1, 1, nobody)


def test_waves_are_halved_with_those_before(tmp_path):
    """Asynchronous halving: a wave whose runs are all worse than earlier ones goes no further."""
    sweep = Pretended(tmp_path)
    rates = iter([1e-3, 1.1e-3, 1e-1, 1.1e-1, 1.2e-1])
    search = search_of(lambda trial: {'lr': next(rates)}, sampler='random')
    search.run(sweep, 4, 2, AsynchronousHalving(2, SCORE, sweep.folder))
    assert [sweep.ended(f'{n:03d}')['steps'] for n in range(4)] == [10, 1, 1, 1]
    assert sorted(read_rungs(tmp_path)) == ['1', '2', '4', '8']


def read_rungs(folder):
    return json.loads((folder / 'rungs.json').read_text(encoding='utf-8'))['rungs']


def test_a_row_that_is_drawn_again_is_not_run_again(tmp_path):
    sweep = Pretended(tmp_path)
    search = search_of(lambda trial: {'lora.rank': trial.suggest_categorical('r', (2, 4))})
    rows = search.run(sweep, 6, 3, nobody)
    assert sorted(row.changes['lora.rank'] for row in rows) == [2, 4]
    assert sum(map(len, sweep.ran)) == 2
    assert [trial.state.name for trial in search._study.get_trials()] == ['COMPLETE'] * 6


def test_wrong_searches_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no setting 'lrr'; near names: \['lr'"):
        search_of(lambda trial: {'lrr': trial.suggest_float('lr', 0, 1)}).run(
            Pretended(tmp_path), 1, 1, nobody
        )
    with pytest.raises(ValueError, match=r"no search 'x' in .*lora_sentiment: it has rates"):
        Search(lora_sentiment, 'x', SETTINGS, 'tpe', SCORE, 0)
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(ValueError, match=r"pip install 'peftjax\[search\]'"):
        search_of()


@pytest.mark.slow
def test_a_search_trains(tmp_path):
    """Two waves of two runs, halved: the folder is that of a sweep, and goes on like one."""
    reviews = read_settings(tiny_runs.film_reviews(tmp_path))
    settings = reviews.change({'duration': '4 steps', 'eval_every': '2 steps'})

    def searched(name, trials):
        sweep = Sweep(SweepFolder(tmp_path / name), Console(quiet=True))
        rows = search_of(settings=settings).run(sweep, trials, 2, Halving(2, SCORE))
        return [
            {field: value for field, value in line.items() if field not in MEASURED}
            for line in sweep.finish(rows)
        ]

    lines = searched('whole', 4)
    assert sorted((line['status'], line['steps']) for line in lines) == [
        *[('done', 4)] * 2,
        *[('pruned', 2)] * 2,
    ]
    assert searched('parts', 2) == lines[:2]
    assert searched('parts', 4) == lines
    for line in lines:
        whole, parts = (tmp_path / name / 'runs' / line['run'] for name in ('whole', 'parts'))
        assert without_rates(whole) == without_rates(parts)
