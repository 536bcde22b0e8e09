"""The report of a sweep: one page to look at, and its charts as pictures.

report.html needs no other file and no network: the best run with what is needed to use and repeat
it, the settings with their confidence intervals over seeds, score against trained parameters and
against cost, learning curves, two fields as a map, and a table of all runs to sort and filter. The
charts are PNGs too, in `figures/`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.sweep import figures
from peftjax.sweep.best import best_of, use_of
from peftjax.sweep.folder import SweepFolder, summary
from peftjax.sweep.intervals import settings, t_quantile
from peftjax.sweep.names import SEED, Line, legend, setting_names, show
from peftjax.sweep.score import Score, read_score, smaller_is_better
from peftjax.train.files import write_whole
from peftjax.train.trackers.log import read_metrics

_PARTS = Path(__file__).parent
_SPLITS = 'validation/', 'test/', 'best/'


def write_report(folder: SweepFolder) -> Path:
    """Writes report.html and `figures/*.png` into a sweep's folder; gives the page's path.

    Example:
        >>> folder = SweepFolder(getfixture('tmp_path'))
        >>> _ = folder.begin([], [], 'configs/x.py', 'rank', 'validation/f1')
        >>> write_report(folder).name
        'report.html'
    """
    about, lines = folder.about(), folder.write_results()
    curves = {line['run']: read_metrics(folder.runs / line['run']) for line in lines}
    fields = sorted({name for line in lines for name in line if name.startswith('config.')})
    score = _score_of(about.get('score', ''), lines)
    best = best_of(lines, score)
    page = {
        **{name: about[name] for name in ('sweep', 'config', 'commit')},
        'counts': ', '.join(f'{count} {status}' for status, count in summary(lines).items()),
        'fields': fields,
        'score': score.name,
        'smaller': _directions(lines, curves, score),
        'metrics': _metrics(lines, score),
        'best': best and best['run'],
        'curves': curves,
        'curve_names': _curve_names(curves, score),
        # Quantiles of Student's distribution by degrees of freedom, from 1 on.
        'quantiles': [t_quantile(n) for n in range(1, max(2, len(lines)))],
    }
    page['legend'], labels = legend(lines, fields)
    names = setting_names(lines, fields)
    page['runs'] = [
        {
            **{k: _cell(v) for k, v in line.items()},
            **{'setting': name, 'label': label, 'use': use_of(folder.path, line['run'])._asdict()},
        }
        for line, name, label in zip(lines, names, labels, strict=True)
    ]
    file = folder.path / 'report.html'
    write_whole(file, _whole(page))
    _draw(folder.path / 'figures', page, lines, labels, score)
    return file


def _whole(page: Mapping[str, Any]) -> str:
    """The page as one file."""
    text = (_PARTS / 'page.html').read_text(encoding='utf-8')
    for place, name in (
        ('/*STYLE*/', 'page.css'),
        ('/*CHARTS*/', 'charts.js'),
        ('/*PAGE*/', 'page.js'),
    ):
        text = text.replace(place, (_PARTS / name).read_text(encoding='utf-8'))
    # Data inside the script must not end it; nothing else in it is read as HTML.
    data = json.dumps(_finite(page), allow_nan=False).replace('<', '\\u003c')
    return text.replace('/*DATA*/', data)


def _score_of(text: str, lines: Sequence[Line]) -> Score:
    """The score that the sweep was begun with; otherwise the first that a run has."""
    known = next((name for line in lines for name in line if name.startswith('validation/')), '')
    return read_score(text or known or 'validation/loss')


def _metrics(lines: Sequence[Line], score: Score) -> list[str]:
    """The scores of the runs: the score of the sweep, then of validation, then all others."""
    found = {name for line in lines for name in line if name.startswith(_SPLITS)}
    rest = sorted(found - {score.name}, key=lambda name: (not name.startswith('valid'), name))
    return [score.name, *rest]


def _curve_names(curves: Mapping[str, Sequence[Line]], score: Score) -> list[str]:
    """Numbers that change over steps: the sweep's score first, then validation and training."""
    found = {name for points in curves.values() for point in points for name in point}
    kept = {n for n in found if n.startswith(('validation/', 'train/'))}
    order = sorted(kept, key=lambda n: (n != score.name, n.startswith('train/'), n))
    return [name for name in order if not name.endswith('_per_second')]


def _directions(
    lines: Sequence[Line], curves: Mapping[str, Sequence[Line]], score: Score
) -> dict[str, bool]:
    """For each number, whether the least value is the best."""
    names = {name for line in lines for name in line} | {
        name for points in curves.values() for point in points for name in point
    }
    found = {name: smaller_is_better(name) for name in names if '/' in name}
    # 'test/wrong' goes the way of 'validation/wrong'.
    last = score.name.partition('/')[2]
    same = {score.name, f'test/{last}', f'best/{score.name}'}
    return found | dict.fromkeys(same, score.smaller)


def _cell(value: Any) -> Any:
    """A value for a table that can be compared; lists become text."""
    return show(value) if isinstance(value, list | dict) else value


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON cannot represent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _draw(
    folder: Path,
    page: Mapping[str, Any],
    lines: Sequence[Line],
    labels: Sequence[str],
    score: Score,
) -> None:
    """The charts of the page as PNGs."""
    folder.mkdir(exist_ok=True)
    fields, name = page['fields'], score.name
    found = settings(lines, fields, name, score.smaller, labels=labels)
    for key, said in (('trainable', 'trained parameters'), ('tflop', 'TFLOP of matrix products')):
        figures.scatter(
            folder / f'score_by_{key}.png', found, key, said, name, labels, page['legend']
        )
    if page['curve_names']:
        by_run = {line['run']: label for line, label in zip(lines, labels, strict=True)}
        figures.curves(
            folder / 'learning_curves.png',
            page['curve_names'][0],
            page['curves'],
            by_run,
            page['legend'],
            page['best'],
        )
    varied = [field for field in fields if field != SEED] or fields
    two = [*varied, *(field for field in fields if field not in varied)][:2]
    if len(two) == 2:
        figures.heat_map(folder / 'heat_map.png', page['runs'], two, name)
