"""What is left of a run when it ends: a learning curve and a table."""

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from peftjax.train.config import Config

_MIB = 2**20


def learning_curve(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws loss and accuracy over steps from metric rows into a PNG.

    Args:
        rows: what `metrics.read_metrics` gives; a row need not have every value.
        path: the file to write.
    """
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    loss_axes, score_axes = figure.subplots(1, 2)
    for name, style in (('train/loss', '-'), ('validation/loss', 'o-')):
        _plot(loss_axes, rows, name, style)
    for name in ('validation/accuracy', 'test/accuracy'):
        _plot(score_axes, rows, name, 'o-')
    loss_axes.set(xlabel='step', ylabel='loss', title='loss')
    score_axes.set(xlabel='step', ylabel='accuracy', title='accuracy')
    for axes in (loss_axes, score_axes):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(path, dpi=120)


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


def result_table(config: Config, result: Mapping[str, float]) -> Table:
    """The results of a run as a table for people."""
    percent = 100 * result['trainable'] / result['base']
    speed = f'{result["steps_per_second"]:.2f}, {result["tokens_per_second"]:,.0f}'
    lines = {
        'base model': config.model.source,
        'method': ' + '.join(config.peft),
        'base parameters': f'{result["base"]:,}',
        'trainable parameters': f'{result["trainable"]:,}, {percent:.3g} % of the base',
        'accuracy, test': f'{result["test/accuracy"]:.4f}',
        'loss, test': f'{result["test/loss"]:.4f}',
        'steps': f'{result["steps"]:,}',
        'steps/s, tokens/s': speed,
        f'peak memory, {jax.default_backend()}': f'{result["peak_memory_mib"]:,.0f} MiB',
    }
    table = Table('what', 'value', title='Results', title_justify='left')
    for name, value in lines.items():
        table.add_row(name, value)
    return table


def _plot(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, style: str) -> None:
    points = [(row['step'], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), style, label=name, markersize=4)
