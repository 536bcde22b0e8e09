"""The files of a finished run: adapters, a model card, a learning curve, and its result."""

import json
import math
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

import peftjax
from peftjax.core.holes import is_hole
from peftjax.interop.files.bounded_json import read_object
from peftjax.train.files import new_file, write_whole
from peftjax.train.member import ADAPTER, LAST, PEFT, Member
from peftjax.train.step import TrainState
from peftjax.train.trackers.log import read_metrics

RESULT, CARD, CURVE = 'result.json', 'README.md', 'learning_curve.png'
_MIB = 2**20


class Artifacts:
    """Writes the files of a finished run into its folder; `result.json` is the last one.

    together: number of runs that shared its program.
    """

    def __init__(self, together: int = 1):
        self._together = together
        self.results: dict[str, dict[str, Any]] = {}

    def __call__(
        self, member: Member, state: TrainState, step: int, known: Mapping[str, Any]
    ) -> None:
        """Writes the files of a run from its last state, its steps, its status and its scores."""
        rows = [] if member.folder is None else read_metrics(member.folder)
        best = member.best
        result = {
            **known,
            **member.scores,
            'steps': step,
            'best_step': best and best.step,
            **({} if best is None else {f'best/{n}': v for n, v in best.scores.items()}),
            'tflop': member.products / 1e12,
            'steps_per_second': _median(rows, 'train/steps_per_second'),
            'tokens_per_second': _median(rows, 'train/tokens_per_second'),
            'trainable': member.summary.trainable,
            'base': member.summary.base,
            'peak_memory_mib': peak_memory_mib(),
            'together': self._together,
        }
        if member.folder is not None:
            result['adapter'] = 'written' if member.unsaved is None else member.unsaved
            if known['status'] == 'done':
                result['adapter_peft'] = write_peft(member, state)
                learning_curve(rows, member.folder / CURVE)
                write_whole(member.folder / CARD, card(member, result))
            write_whole(member.folder / RESULT, json.dumps(result, indent=2) + '\n')
        self.results[member.name] = result

    def written(self, member: Member) -> Mapping[str, Any]:
        """The result of a run that was over already, from its folder."""
        if member.folder is None:  # In all processes but the first.
            return {}
        return read_result(member.folder) or {}

    def left(self, member: Member, result: Mapping[str, Any]) -> str:
        """A text for people: the files in the folder, and the command that uses them."""
        folder = member.folder
        peft = result.get('adapter_peft')
        if member.unsaved is not None:
            return f'no adapter is written to {folder}: {member.unsaved}'
        lines = [f'the best adapter: {folder}/{ADAPTER}; all else of the run: {folder}']
        if peft == 'written':
            lines.append(f'the same for Hugging Face peft: {folder}/{PEFT}')
        elif peft is not None:
            lines.append(f'not written for Hugging Face peft: {peft}')
        columns = member.run.description.get('data', {}).get('columns', {})
        if not member.run.task.answer:
            use = f'evaluate {folder}'
        elif set(columns) <= {'text', 'label'}:
            use = f'predict {folder} --text "a text of yours"'
        else:
            use = f'predict {folder} table.csv'
        return '\n'.join([*lines, f'use it: peftjax {use}'])


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run; None if the run is not over.

    Raises:
        CheckpointError: the file is damaged; the message names it.
    """
    file = folder / RESULT
    if not file.exists():
        return None
    result = read_object(file, finite=False)
    if type(result.get('steps')) is not int or not isinstance(result.get('status'), str):
        raise peftjax.CheckpointError(f'{file} holds no result of a run')
    return result


def steps_taken(folder: Path) -> int | None:
    """The number of steps that a run took; None if the run is not over."""
    result = read_result(folder)
    return None if result is None else result['steps']


def write_peft(member: Member, state: TrainState) -> str:
    """Writes the best adapter for Hugging Face's peft; returns 'written', or why it cannot be."""
    assert member.folder is not None
    run = member.run
    if jax.process_count() > 1:
        return 'several processes hold the base of this run'
    if run.model.config is None:
        return 'the model is not of a family that other libraries have'
    if member.unsaved is not None:
        return member.unsaved
    params = member.beside.frozen.params
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), run.model.params
    )
    # A leaf that moved into the adapter needs no value here: the adapter has it.
    model = run.model.replace(params=_filled(params, shapes))
    adapter = member.best_written(state)
    source = run.description.get('model', {}).get('source', '')
    try:
        peftjax.save_adapter(member.folder / PEFT, model, run.transform, adapter, base_model=source)
    except (ValueError, TypeError) as error:
        return str(error)
    return 'written'


def _filled(params: Any, shapes: Any) -> Any:
    if is_hole(params):
        return shapes
    if isinstance(params, dict):
        return {name: _filled(each, shapes[name]) for name, each in params.items()}
    return params


def _chosen(best: str, result: Mapping[str, Any]) -> str:
    if result['best_step'] is None:
        return 'the last adapter is kept: no evaluation on a validation split chose another'
    least, name = 'least' if best.startswith('-') else 'greatest', best.removeprefix('-')
    step = result['best_step']
    return f'the best adapter has the {least} {name} on the validation split, at step {step}'


def card(member: Member, result: Mapping[str, Any]) -> str:
    """The model card of a run: what was trained on what, how well it does, and how to use it."""
    run, folder = member.run, member.folder
    about = run.description
    source = about.get('model', {}).get('source') or 'a model of your own'
    data = about.get('data', {}).get('source') or 'data of your own'
    scores = {n: v for n, v in result.items() if '/' in n and isinstance(v, float)}
    versions = {name: metadata.version(name) for name in ('jax', 'flax', 'optax')}
    found = ', '.join(f'{name} {version}' for name, version in versions.items())
    lines = [
        '---',
        f'base_model: {json.dumps(source)}',
        'library_name: peftjax',
        'tags: [peftjax, adapter]',
        '---',
        '',
        f'# An adapter for {source}',
        '',
        f'- method: `{run.transform!r}`',
        f'- trained: {result["trainable"]:,} parameters beside {result["base"]:,} of the base',
        f'- task: {about.get("task", "of your own")}; data: {data}',
        f'- {result["steps"]:,} steps, seed {run.seed}; {_chosen(run.best, result)}',
        f'- versions: peftjax {peftjax.__version__}, {found}, Python {platform.python_version()}',
        '',
        '| score | value |',
        '|---|---|',
        *(f'| {name} | {value:.4f} |' for name, value in scores.items()),
        '',
        f'`{ADAPTER}/` holds the best adapter and `{LAST}/` the last one, for peftjax; '
        '`config.json` holds all settings.'
        if member.unsaved is None
        else f'No adapter is written: {member.unsaved}.',
        f'`{PEFT}/` holds the best adapter for Hugging Face peft.'
        if result['adapter_peft'] == 'written'
        else f'There is no `{PEFT}/`: {result["adapter_peft"]}.',
        '',
        '```python',
        f'model = peftjax.train.RunFolder({str(folder)!r}).load_model()'
        if 'model' in about
        else 'model = peftjax.wrap(...)  # as it was trained',
        f'tx, adapter, frozen = peftjax.restore({str(folder and folder / ADAPTER)!r}, model)',
        'predict = peftjax.adapt(model, tx)',
        '```',
        '',
    ]
    return '\n'.join(lines)


# Text between two dollar signs, for example in the name of a score, is not mathematics.
@matplotlib.rc_context({'text.parse_math': False, 'text.usetex': False})
def learning_curve(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws the loss and the other scores over steps into a PNG.

    Args:
        rows: lines of metrics.jsonl; a line need not have every value.
        path: the file to write.
    """
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    loss_axes, score_axes = figure.subplots(1, 2)
    for name, style in (('train/loss', '-'), ('validation/loss', 'o-')):
        _plot(loss_axes, rows, name, style)
    names = dict.fromkeys(name for row in rows for name in row)
    for name in names:
        split, _, score = name.partition('/')
        if split in ('validation', 'test') and score != 'loss':
            _plot(score_axes, rows, name, 'o-')
    loss_axes.set(xlabel='step', ylabel='loss', title='loss')
    score_axes.set(xlabel='step', ylabel='score', title='scores')
    for axes in (loss_axes, score_axes):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    with new_file(path) as new:
        figure.savefig(new, dpi=120)


def peak_memory_mib() -> float:
    """The most memory used so far, in MiB.

    On an accelerator the device's own count; on a CPU the process's resident set, which includes
    Python and the compiler.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use'] / _MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (_MIB if sys.platform == 'darwin' else 1024)


def result_table(member: Member, result: Mapping[str, Any]) -> Table:
    """The results of a run as a table for people."""
    percent = 100 * result['trainable'] / result['base']
    speed = f'{result["steps_per_second"]:.2f}, {result["tokens_per_second"]:,.0f}'
    about = member.run.description
    tested = {n.partition('/')[2]: v for n, v in result.items() if n.startswith('test/')}
    lines = {
        'base model': about.get('model', {}).get('source', ''),
        'method': ' + '.join(about.get('methods', ())) or repr(member.run.transform),
        'base parameters': f'{result["base"]:,}',
        'trainable parameters': f'{result["trainable"]:,}, {percent:.3g} % of the base',
        **{f'{name}, test': f'{value:.4f}' for name, value in tested.items()},
        'steps': f'{result["steps"]:,}',
        'best step': f'{result["best_step"]}',
        'steps/s, tokens/s': speed,
        f'peak memory, {jax.default_backend()}': f'{result["peak_memory_mib"]:,.0f} MiB',
    }
    table = Table('what', 'value', title='Results', title_justify='left')
    for name, value in lines.items():
        table.add_row(name, value)
    return table


def _median(rows: Sequence[Mapping[str, float]], name: str) -> float:
    # The median ignores the few windows in which a program was compiled.
    values = [row[name] for row in rows if name in row]
    return float(np.median(values)) if values else math.nan


def _plot(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, style: str) -> None:
    points = [(row['step'], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), style, label=name, markersize=4)
