"""Halving within a group and across groups, by any score."""

import json
import multiprocessing
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from peftjax import cli
from peftjax.sweep.asynchronous import AsynchronousHalving
from peftjax.sweep.best import best_of, best_text, use_of
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.pruning import Halving, Rung
from peftjax.sweep.rows import expand
from peftjax.sweep.run import Sweep, default_score
from peftjax.sweep.score import Score, read_score
from peftjax.train.settings import Settings, read_settings
from tests import tiny_runs

F1 = 'validation/f1'


def rung(number, **scores):
    return Rung(10 * number, number, len(scores), {n: {F1: each} for n, each in scores.items()})


@pytest.fixture
def halving(tmp_path):
    return AsynchronousHalving(2, 'f1', SweepFolder(tmp_path))


def test_a_group_that_comes_first_is_halved_as_by_itself(halving):
    scores = {name: 0.1 * i for i, name in enumerate('abcdefg')}
    assert set(halving(rung(1, **scores))) == set(Halving(2, 'f1')(rung(1, **scores)))


def test_later_groups_are_compared_with_all_that_came(halving):
    """By hand: 4 came, 2 go on; then 6, of which 3 may; then 8 and 4, with others of rung 2."""
    assert halving(rung(1, a=0.1, b=0.2, c=0.3, d=0.4)) == {'a', 'b'}
    assert halving(rung(1, e=0.35, f=0.01)) == {'f'}
    assert halving(rung(1, g=0.32, h=0.5)) == set()
    assert halving(rung(2, c=0.6, d=0.5)) == {'d'}
    assert halving(rung(2, e=0.4)) == {'e'}
    assert not halving(rung(3, c=0.6, g=0.4))  # no rung
    assert halving(rung(4, c=0.9)) == set()


def test_what_was_decided_stays(halving, tmp_path):
    """A group that was killed after it arrived comes again, after others that are better."""
    assert halving(rung(1, a=0.1, b=0.2)) == {'a'}
    assert halving(rung(1, c=0.9, d=0.8, e=0.7)) == {'e'}
    text = (tmp_path / 'rungs.json').read_text(encoding='utf-8')
    assert halving(rung(1, a=0.1, b=0.2)) == {'a'}
    assert (tmp_path / 'rungs.json').read_text(encoding='utf-8') == text


def test_the_order_of_arrivals_decides(tmp_path):
    groups = [rung(1, a=0.1, b=0.4), rung(1, c=0.2, d=0.3), rung(1, e=0.5)]

    def stopped(folder, order):
        folder.mkdir()
        decide = AsynchronousHalving(2, 'f1', SweepFolder(folder))
        return [sorted(decide(groups[i])) for i in order]

    first = stopped(tmp_path / 'a', (0, 1, 2))
    assert first == stopped(tmp_path / 'b', (0, 1, 2)) == [['a'], ['c'], []]
    assert stopped(tmp_path / 'c', (1, 0, 2)) == [['c'], ['a'], []]


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=1, max_size=6))
def test_at_most_a_share_goes_on_but_the_best_of_all_never_stops(tmp_path_factory, groups):
    """Each arrival keeps at most max(1, m // 2) of the m that came, and never loses the best."""
    folder = SweepFolder(tmp_path_factory.mktemp('sweep'))
    halving, came = AsynchronousHalving(2, F1, folder), {}
    for i, values in enumerate(groups):
        scores = {f'{i}-{j}': value for j, value in enumerate(values)}
        came |= scores
        kept = set(scores) - set(halving(rung(1, **scores)))
        best = sorted(came, key=lambda name: (-came[name], name))
        assert kept == set(scores) & set(best[: max(1, len(best) // 2)])


def test_nan_is_worst_and_is_stored(halving, tmp_path):
    assert halving(rung(1, a=float('nan'), b=0.1, c=float('inf'), d=0.2)) == {'a', 'c'}
    held = json.loads((tmp_path / 'rungs.json').read_text(encoding='utf-8'))
    assert held['rungs']['1']['scores'] == {'a': None, 'b': 0.1, 'c': None, 'd': 0.2}
    assert halving(rung(1, e=0.0)) == {'e'}


def test_small_can_be_good(tmp_path):
    scores = {'a': {'validation/loss': 0.1}, 'b': {'validation/loss': 0.2}}
    for name in ('loss', '-validation/loss'):
        assert Halving(2, name)(Rung(1, 1, 2, scores)) == ['b']
    halving = AsynchronousHalving(2, 'loss', SweepFolder(tmp_path))
    assert halving(Rung(1, 1, 2, scores)) == {'b'}


def test_wrong_scores_and_other_rungs_are_refused(halving, tmp_path):
    with pytest.raises(
        ValueError, match='no run logs validation/f2: give --score one of valid.*f1'
    ):
        Halving(2, 'f2')(rung(1, a=0.5))
    with pytest.raises(ValueError, match='no run logs validation/f2'):
        halving._replace(score='f2')(rung(1, a=0.5))
    assert not (tmp_path / 'rungs.json').exists()
    halving(rung(1, a=0.5))
    with pytest.raises(
        ValueError, match=r'rungs.json was made with --halving=2 --score=validation/f1'
    ):
        halving._replace(eta=3)(rung(1, b=0.5))
    with pytest.raises(ValueError, match='test split|validation split'):
        read_score('test/f1')
    runs = {
        n: {'config': {'eval_every': every}}
        for n, every in (('000', '1 epoch'), ('001', '9 steps'))
    }
    (tmp_path / 'sweep.json').write_text(json.dumps({'runs': runs}), encoding='utf-8')
    with pytest.raises(
        ValueError, match="000 is scored every '1 epoch' and run 001 every '9 steps'"
    ):
        halving(rung(1, c=0.5))


def _arrive(halving, number):
    names = {f'{number}{letter}': number + 0.1 * i for i, letter in enumerate('abc')}
    return len(names) - len(halving(rung(1, **names)))


def test_processes_decide_one_after_another(halving, tmp_path):
    """Eight arrivals from two processes, which unpickle the pruner: none is lost."""
    with multiprocessing.get_context('spawn').Pool(2) as pool:
        kept = pool.starmap(_arrive, [(halving, number) for number in range(8)])
    held = json.loads((tmp_path / 'rungs.json').read_text(encoding='utf-8'))['rungs']['1']
    assert len(held['scores']) == 24 and len(held['stopped']) == 24 - sum(kept)
    # Whatever the order, what stopped is what each arrival had to stop.
    again, names = {}, list(held['scores'])
    for i in range(0, 24, 3):
        again |= {name: held['scores'][name] for name in names[i : i + 3]}
        best = sorted(again, key=lambda name: (-again[name], name))[: max(1, len(again) // 2)]
        assert set(names[i : i + 3]) - set(best) == set(names[i : i + 3]) & set(held['stopped'])


def test_the_best_run_comes_with_what_uses_it(tmp_path):
    lines = [
        {'run': '000', 'status': 'done', F1: 0.5},
        {'run': '001', 'status': 'pruned', F1: 0.9},
        {'run': '002', 'status': 'done', F1: float('nan')},
        {'run': '003', 'status': 'done', F1: 0.7},
    ]
    score = Score(F1, smaller=False)
    best = best_of(lines, score)
    assert best is lines[3] and best_of(lines[1:3], score) is None
    folder = tmp_path / 'my sweep'
    (folder / 'runs/003/adapter').mkdir(parents=True)
    use = use_of(folder, '003')
    assert use.adapter == str(folder / 'runs/003/adapter') and use_of(folder, '000').adapter is None
    assert f"--config '{folder}/runs/003/config.json'" in use.command
    text = best_text(folder, lines, score)
    assert '003 with 0.7000' in text and use.command in text and str(use.adapter) in text
    assert best_text(folder, [], score) == 'no run has ended with a validation/f1'


def test_the_command_of_a_run_reads_all_of_its_settings(tmp_path, capsys):
    settings = Settings().change({'lr': 3e-3, 'lora.rank': 2, 'seed': 7, 'methods': ['lora']})
    use = use_of(tmp_path / 'my sweep', '003')
    Path(use.config).parent.mkdir(parents=True)
    Path(use.config).write_text(json.dumps(settings.to_dict()), encoding='utf-8')
    name, *rest = shlex.split(use.command)
    assert name == 'peftjax' and cli.main([*rest, '--show']) == 0
    assert json.loads(capsys.readouterr().out) == settings.to_dict()


@pytest.mark.slow
def test_groups_of_a_sweep_decide_with_those_that_came_and_go_on_alike(tmp_path):
    """Two groups of two; killed right after the second group arrived at its first rung."""
    reviews = read_settings(tiny_runs.film_reviews(tmp_path))
    settings = reviews.change({'duration': '4 steps', 'eval_every': '2 steps'})
    rates = ((1e-2, 4), (3e-3, 1), (1e-5, 4), (2e-5, 4))
    module = ModuleType('config_of_a_test')
    vars(module)['sweep_rates'] = lambda add: [
        add(lr=rate, **{'lora.rank': rank}) for rate, rank in rates
    ]
    rows = expand(module, 'rates', settings)

    folder = SweepFolder(tmp_path / 'sweep')
    assert read_score(default_score(folder, settings)).name == 'validation/loss'
    assert default_score(folder, settings.change({'best': 'f1'})) == 'f1'
    sweep = Sweep(folder, Console(quiet=True), score='loss', most=2)
    halving, came = AsynchronousHalving(2, 'loss', folder), []

    def killed(rung):
        halving(rung)
        came.append(sorted(rung.scores))
        if len(came) == 2:
            raise KeyboardInterrupt
        return halving(rung)

    with pytest.raises(KeyboardInterrupt):
        sweep.run(rows, killed)
    assert came == [['000', '001'], ['002', '003']]
    rungs = (folder.path / 'rungs.json').read_text(encoding='utf-8')
    sweep.run(rows, halving)
    assert (folder.path / 'rungs.json').read_text(encoding='utf-8') == rungs
    assert default_score(folder, settings) == 'loss'
    lines = sweep.finish(rows)
    # Both runs of the second group are worse than the better half of the four that came.
    statuses = [line['status'] for line in lines]
    assert sorted(statuses[:2]) == ['done', 'pruned'] and statuses[2:] == ['pruned', 'pruned']
    assert [line['steps'] for line in lines] == [4 if s == 'done' else 2 for s in statuses]
    # The cost of a run is its own, whatever it trained beside.
    costs = [line['tflop'] / line['steps'] for line in lines]
    assert costs[0] == costs[2] > costs[1]
    done = statuses.index('done')
    use = use_of(folder.path, rows[done].name)
    assert use.adapter == str(folder.runs / rows[done].name / 'adapter') and use.last
    # The command to repeat it reads the settings that it was trained with.
    written = json.loads(Path(use.config).read_text(encoding='utf-8'))
    assert read_settings(written) == rows[done].settings
