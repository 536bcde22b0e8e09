"""The report of a sweep: one page to look at, and its charts as pictures.

report.html needs no other file and no network: the best settings with their spread over seeds,
score against trained parameters and against cost, learning curves, two fields as a map, and a table
of all rows to sort and filter. The charts are PNGs too, in `figures/`.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from peftjax.sweep.board import show
from peftjax.sweep.folder import SweepFolder, summary
from peftjax.train.files import write_whole
from peftjax.train.trackers.log import read_metrics

_TEMPLATE = Path(__file__).with_name('page.html')
_SCORES = ('validation/accuracy', 'test/accuracy', 'validation/loss', 'test/loss')
_CURVES = ('validation/accuracy', 'validation/loss', 'train/loss', 'train/accuracy')

Line = Mapping[str, Any]


def write_report(folder: SweepFolder) -> Path:
    """Writes report.html and `figures/*.png` into a sweep's folder; gives the page's path."""
    about, lines = folder.about(), folder.write_results()
    curves = {line['row']: read_metrics(folder.rows / line['row']) for line in lines}
    fields = sorted({name for line in lines for name in line if name.startswith('config.')})
    metrics = [name for name in _SCORES if any(name in line for line in lines)] or [_SCORES[0]]
    page = {
        'sweep': about['sweep'],
        'config': about['config'],
        'commit': about['commit'],
        'counts': ', '.join(f'{count} {status}' for status, count in summary(lines).items()),
        'fields': fields,
        'metric': metrics[0],
        'metrics': metrics,
        'rows': [{k: _cell(v) for k, v in line.items() if k != 'config'} for line in lines],
        'curves': curves,
        'curve_names': [
            name for name in _CURVES if any(name in point for c in curves.values() for point in c)
        ],
    }
    # What stands in a script may not end it; nothing else in it is read as HTML.
    text = json.dumps(_finite(page), allow_nan=False).replace('<', '\\u003c')
    file = folder.path / 'report.html'
    write_whole(file, _TEMPLATE.read_text(encoding='utf-8').replace('/*DATA*/', text))
    _figures(folder.path / 'figures', page)
    return file


def _cell(value: Any) -> Any:
    """A value that can be compared and stand in a table: lists as their text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def settings(rows: Sequence[Line], fields: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """Rows that differ in their seed alone, as one: mean and deviation of a score, the best first.

    Of rows that ran to their end.

    Example:
        >>> row = {'config.lr': 0.1, 'status': 'done', 'test/accuracy': 0.5}
        >>> rows = [{**row, 'seed': 0}, {**row, 'seed': 1, 'test/accuracy': 1.5}]
        >>> found = settings(rows, ['config.lr'], 'test/accuracy')
        >>> found[0]['setting'], found[0]['mean'], found[0]['seeds']
        ('lr=0.1', 1.0, 2)
    """
    named: dict[str, list[Line]] = {}
    for row in rows:
        if row['status'] == 'done' and isinstance(row.get(metric), float):
            changed = [f for f in fields if f != 'config.seed']
            name = '  '.join(f'{f.removeprefix("config.")}={show(row.get(f))}' for f in changed)
            named.setdefault(name or 'as configured', []).append(row)
    found = [
        {
            'setting': name,
            'mean': float(np.mean([row[metric] for row in members])),
            'deviation': float(np.std([row[metric] for row in members], ddof=1))
            if len(members) > 1
            else math.nan,
            'seeds': len(members),
            'trainable': members[0].get('trainable'),
            'tflop': members[0].get('tflop'),
        }
        for name, members in named.items()
    ]
    sign = 1 if metric.endswith('loss') else -1
    return sorted(found, key=lambda each: sign * each['mean'])


def _figures(folder: Path, page: Mapping[str, Any]) -> None:
    """The charts of the page as PNGs."""
    folder.mkdir(exist_ok=True)
    found = settings(page['rows'], page['fields'], page['metric'])
    for key, name in (('trainable', 'trained parameters'), ('tflop', 'TFLOP')):
        figure = Figure(figsize=(7, 4.4), layout='constrained')
        axes = figure.subplots()
        for each in found:
            axes.errorbar(each[key], each['mean'], each['deviation'], fmt='o', capsize=2)
            axes.annotate(
                each['setting'],
                (each[key], each['mean']),
                xytext=(5, 4),
                textcoords='offset points',
                fontsize=7,
            )
        axes.set(xscale='log', xlabel=name, ylabel=page['metric'])
        axes.grid(alpha=0.3)
        figure.savefig(folder / f'score_by_{key}.png', dpi=120)
    if page['curve_names']:
        figure = Figure(figsize=(9, 4.4), layout='constrained')
        axes = figure.subplots()
        name = page['curve_names'][0]
        for row, points in page['curves'].items():
            steps = [(p['step'], p[name]) for p in points if name in p]
            if steps:
                axes.plot(*zip(*steps, strict=True), label=row, linewidth=1)
        axes.set(xlabel='step', ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2, title='row')
        figure.savefig(folder / 'learning_curves.png', dpi=120)
    if len(page['fields']) > 1:
        _heat_map(folder / 'heat_map.png', page)


def _heat_map(file: Path, page: Mapping[str, Any]) -> None:
    down, across, metric = *page['fields'][:2], page['metric']
    rows = [row for row in page['rows'] if isinstance(row.get(metric), float)]
    ys, xs = (bands([row.get(field) for row in rows]) for field in (down, across))
    if not rows:
        return
    cells = [
        [
            np.mean(
                [r[metric] for r in rows if r.get(down) in y and r.get(across) in x] or [np.nan]
            )
            for x in xs
        ]
        for y in ys
    ]
    figure = Figure(figsize=(1.6 + 1.1 * len(xs), 1.4 + 0.6 * len(ys)), layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(np.asarray(cells, float), cmap='Blues', aspect='auto')
    axes.set_xticks(range(len(xs)), [_label(x) for x in xs])
    axes.set_yticks(range(len(ys)), [_label(y) for y in ys])
    axes.set(xlabel=across.removeprefix('config.'), ylabel=down.removeprefix('config.'))
    for i, line in enumerate(cells):
        for j, value in enumerate(line):
            axes.text(j, i, f'{value:.3f}', ha='center', va='center', fontsize=8)
    figure.colorbar(image, label=metric)
    figure.savefig(file, dpi=120)


def bands(all_values: Sequence[Any]) -> list[list[Any]]:
    """Values that share a line of the map: each its own, of many numbers some neighbours.

    Example:
        >>> bands([3, 1, 3])
        [[1], [3]]
        >>> bands(range(12))
        [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    """
    values = set(all_values)
    numbers = all(isinstance(value, int | float) for value in values)
    ordered = sorted(values, key=None if numbers else str)
    count = 6 if numbers and len(values) > 8 else len(values)
    ends = [round(i * len(values) / count) for i in range(count + 1)]
    return [ordered[first:last] for first, last in itertools.pairwise(ends)]


def _label(band: Sequence[Any]) -> str:
    return ' to '.join(dict.fromkeys((show(band[0]), show(band[-1]))))
