"""The tables, verdicts and figure of the merging study, from its rows of results."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.claims import Interval, interval, verdict
from peftjax.train.files import new_file

Row = Mapping[str, Any]
TITLES = {'lora': 'LoRA, rank 8, all kernels', 'full': 'full fine-tuning'}
RULES = {
    'individual': 'individual models',
    'pretrained': 'pretrained encoder',
    'average': 'average',
    'fisher': 'Fisher',
    'regmean': 'RegMean',
    'task arithmetic': 'task arithmetic',
    'ties': 'TIES',
    'dare': 'DARE',
    'core ties': 'TIES in Core Space',
    'core dare': 'DARE in Core Space',
}
"""The names of rules in tables, in the order of the tables."""


class Scored(NamedTuple):
    """The scores of a rule with the settings that validation chose, seed by seed.

    Attributes:
        tasks: accuracy `[seeds, tasks]` on test.
        settings: as text, one for each seed.
    """

    tasks: np.ndarray
    settings: tuple[str, ...]

    @property
    def mean(self) -> Interval:
        """The interval over seeds of the mean accuracy of the tasks."""
        return interval(self.tasks.mean(1).tolist())


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """The tasks, in the order of the rows."""
    return list(dict.fromkeys(row['task'] for row in rows if row['stage'] == 'individual'))


def individuals(rows: Sequence[Row], method: str) -> Scored:
    """The individual models, each on its own task."""
    mine = [row for row in rows if row['stage'] == 'individual' and row['method'] == method]
    seeds = sorted({row['seed'] for row in mine})
    tasks = tasks_of(rows)
    found = {(row['seed'], row['task']): row['test/accuracy'] for row in mine}
    table = np.array([[found[seed, task] for task in tasks] for seed in seeds])
    return Scored(table, ('',) * len(seeds))


def chosen(rows: Sequence[Row], method: str, rule: str) -> Scored:
    """A rule with the settings of the best mean accuracy on validation, chosen for each seed.

    Raises:
        ValueError: the test accuracy of a chosen setting is not among the rows.
    """
    tasks, table, settings = tasks_of(rows), [], []
    for seed, found in _by_seed(rows, method, rule, 'validation').items():
        best = max(found, key=lambda row: row['mean'])
        test = [r for r in _by_seed(rows, method, rule, 'test')[seed] if _point(r) == _point(best)]
        if len(test) != 1:
            raise ValueError(f'{method}, {rule}, seed {seed}: no test accuracy of {_point(best)}')
        table.append([test[0][task] for task in tasks])
        settings.append(_said(best))
    return Scored(np.array(table), tuple(settings))


def curve(rows: Sequence[Row], method: str) -> dict[float, list[float]]:
    """Mean test accuracy of each seed over λ of task arithmetic, 0 being the pretrained encoder."""
    found: dict[float, list[float]] = {}
    for rule in ('pretrained', 'task arithmetic'):
        for tested in _by_seed(rows, method, rule, 'test').values():
            for row in tested:
                found.setdefault(row['weight'] or 0.0, []).append(row['mean'])
    return dict(sorted(found.items()))


def _by_seed(rows: Sequence[Row], method: str, rule: str, split: str) -> dict[int, list[Row]]:
    wanted = {'stage': 'merged', 'method': method, 'rule': rule, 'split': split}
    mine = [row for row in rows if wanted.items() <= row.items()]
    return {seed: [row for row in mine if row['seed'] == seed] for seed in _seeds(mine)}


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({row['seed'] for row in rows})


def _point(row: Row) -> tuple[float | None, float | None]:
    return row['weight'], row['kept']


def _said(row: Row) -> str:
    names = {'weight': 'λ', 'kept': 'kept'}
    return ', '.join(f'{n} {row[f]:g}' for f, n in names.items() if row[f] is not None)


def all_scored(rows: Sequence[Row], method: str) -> dict[str, Scored]:
    """The individual models, and every rule that was scored for a method."""
    have = {row['rule'] for row in rows if row['stage'] == 'merged' and row['method'] == method}
    rules = {rule: chosen(rows, method, rule) for rule in RULES if rule in have}
    return {'individual': individuals(rows, method), **rules}


def table(rows: Sequence[Row]) -> str:
    """Accuracy by method and rule, as a table in Markdown."""
    tasks = tasks_of(rows)
    lines = [
        f'| models | rule | {" | ".join(tasks)} | mean of tasks (95 % interval) | over average '
        '| chosen, seed by seed |',
        '|---' * (len(tasks) + 5) + '|',
    ]
    for method, title in TITLES.items():
        scored = all_scored(rows, method)
        average = scored['average'].tasks.mean(1)
        for rule, each in scored.items():
            over = interval((each.tasks.mean(1) - average).tolist())
            cells = [f'{value:.3f}' for value in each.tasks.mean(0)]
            settings = ' / '.join(each.settings) if any(each.settings) else ''
            lines.append(
                f'| {title} | {RULES[rule]} | {" | ".join(cells)} '
                f'| {each.mean.mean:.3f} ({each.mean.low:.3f} to {each.mean.high:.3f}) '
                f'| {"" if rule == "average" else _signed(over)} | {settings} |'
            )
    return '\n'.join(lines) + '\n'


def _signed(found: Interval) -> str:
    return f'{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})'


class Comparison(NamedTuple):
    """The claim that one number is greater than another: `more - less > 0`, seed by seed.

    Attributes:
        text: the claim in words.
        more, less: functions from the results of a method to accuracies `[seeds, tasks]`.
    """

    text: str
    more: Callable[[Mapping[str, Scored]], np.ndarray]
    less: Callable[[Mapping[str, Scored]], np.ndarray]


def _rule(name: str) -> Callable[[Mapping[str, Scored]], np.ndarray]:
    return lambda scored: scored[name].tasks


COMPARISONS = (
    Comparison('Fisher is above the average', _rule('fisher'), _rule('average')),
    Comparison('RegMean is above the average', _rule('regmean'), _rule('average')),
    Comparison('task arithmetic is above the average', _rule('task arithmetic'), _rule('average')),
    Comparison('TIES is above the average', _rule('ties'), _rule('average')),
    Comparison('RegMean is above Fisher', _rule('regmean'), _rule('fisher')),
    Comparison('RegMean is above task arithmetic', _rule('regmean'), _rule('task arithmetic')),
    Comparison('TIES is above task arithmetic', _rule('ties'), _rule('task arithmetic')),
    Comparison('DARE is above task arithmetic', _rule('dare'), _rule('task arithmetic')),
    Comparison('TIES in Core Space is above TIES', _rule('core ties'), _rule('ties')),
    Comparison('individual models are above every rule', _rule('individual'), _rule('best')),
    Comparison('λ: the chosen one is above 0', _rule('task arithmetic'), _rule('pretrained')),
    Comparison(
        'λ: the chosen one is above the greatest', _rule('task arithmetic'), _rule('greatest')
    ),
)


def verdicts(rows: Sequence[Row]) -> str:
    """Each claim with the paired difference that decides it, as a table in Markdown."""
    lines = [
        '| claim | models | difference (95 % interval) | pairs above / equal / below | verdict |',
        '|---|---|---|---|---|',
    ]
    everything = {method: _with_ends(rows, method) for method in TITLES}
    for claim in COMPARISONS:
        for method, scored in everything.items():
            try:
                pairs = claim.more(scored) - claim.less(scored)
            except KeyError:  # The rule is not defined for these models.
                continue
            found = interval(pairs.mean(1).tolist())
            signs = [int((np.sign(pairs) == sign).sum()) for sign in (1, 0, -1)]
            lines.append(
                f'| {claim.text} | {TITLES[method]} | {_signed(found)} '
                f'| {" / ".join(map(str, signs))} | {verdict(found)} |'
            )
    return '\n'.join(lines) + '\n'


def _with_ends(rows: Sequence[Row], method: str) -> dict[str, Scored]:
    """Every rule, and as `best` the one with the best mean, as `greatest` the greatest λ."""
    scored = all_scored(rows, method)
    rules = [rule for rule in scored if rule != 'individual']
    best = max(rules, key=lambda rule: scored[rule].mean.mean)
    tests = _by_seed(rows, method, 'task arithmetic', 'test').values()
    ends = [max(tested, key=lambda row: row['weight']) for tested in tests]
    table = np.array([[row[task] for task in tasks_of(rows)] for row in ends])
    greatest = Scored(table, tuple(map(_said, ends)))
    return {**scored, 'best': scored[best], 'greatest': greatest}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws accuracy over λ, and accuracy by rule, with a column for each kind of models."""
    figure = Figure(figsize=(11, 9), layout='constrained')
    axes = figure.subplots(2, len(TITLES), sharey='row')
    for column, (method, title) in enumerate(TITLES.items()):
        scored = all_scored(rows, method)
        _draw_curves(axes[0, column], rows, method, scored)
        _draw_rules(axes[1, column], scored)
        axes[0, column].set_title(f'Four models by {title}, merged into one')
    axes[0, 0].set_ylabel('accuracy on test, mean of four tasks')
    axes[1, 0].set_ylabel('accuracy on test, mean of four tasks')
    axes[0, 0].legend(loc='lower left', fontsize=8)
    with new_file(path) as new:
        figure.savefig(new, dpi=110)


def _draw_curves(
    axes: Axes, rows: Sequence[Row], method: str, scored: Mapping[str, Scored]
) -> None:
    lines = {
        'individual': ('black', '--'),
        'fisher': ('tab:red', (0, (5, 1, 1, 1))),
        'regmean': ('tab:green', ':'),
        'average': ('grey', '-.'),
    }
    for rule, (colour, style) in lines.items():
        axes.axhline(scored[rule].mean.mean, color=colour, linestyle=style, label=RULES[rule])
    found = curve(rows, method)
    weights, values = list(found), np.array(list(found.values()))
    label = 'task arithmetic (band: least to greatest seed)'
    axes.plot(weights, values.mean(1), color='tab:blue', marker='o', markersize=4, label=label)
    axes.fill_between(weights, values.min(1), values.max(1), color='tab:blue', alpha=0.2)
    axes.set_xlabel('λ, the factor of the four summed changes')
    axes.grid(alpha=0.3)


def _draw_rules(axes: Axes, scored: Mapping[str, Scored]) -> None:
    order = sorted(scored, key=lambda rule: scored[rule].mean.mean)
    for place, rule in enumerate(order):
        values = scored[rule].tasks.mean(1)
        colour = {'individual': 'dimgrey', 'pretrained': 'lightgrey'}.get(rule, 'tab:blue')
        axes.bar(place, values.mean(), color=colour, alpha=0.6)
        axes.plot([place] * len(values), values, 'k.', markersize=5)
        axes.annotate(
            f'{values.mean():.3f}',
            (place, values.max()),
            xytext=(0, 4),
            textcoords='offset points',
            ha='center',
            fontsize=8,
        )
    names = [RULES[rule] for rule in order]
    axes.set_xticks(range(len(order)), names, rotation=35, ha='right')
    axes.set_ylim(bottom=0.9 * min(each.tasks.mean(1).min() for each in scored.values()))
    axes.grid(alpha=0.3, axis='y')
