"""Times a training step, alone or in turns with Hugging Face peft.

    python -m benchmarks.step_time --model bert
    python -m benchmarks.step_time --torch_python <a Python with torch, transformers, peft> --write

Each side warms up (compiling is not counted). Then they run in turns, and one waits while the other
runs. A turn is the median of `--steps` steps. The ratio ours / theirs is taken pair by pair; below
one, ours is faster. *CPU time* is the median ratio of processor time over all threads. With
`--cores 1` it hardly depends on other work on the machine; with more cores it also counts waiting
in spin locks.
"""

import contextlib
import json
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from benchmarks import options, report, turns
from benchmarks.cases import BATCHES, SIZES, TITLES

_METHODS = flags.DEFINE_multi_string(
    'method', ['full', 'LoRA r=8, q v', 'LoRA r=8, all-linear'], 'rows of the table; repeatable'
)
_ROUTE = flags.DEFINE_enum('route', 'rules', ['rules', 'merged'], 'of our side')
_SCAN = flags.DEFINE_bool('scan', False, 'scanned layers on our side')
_TORCH = flags.DEFINE_string('torch_python', None, 'a Python with torch, transformers and peft')
_STEPS = flags.DEFINE_integer('steps', 3, 'steps of a turn, whose median is used')
_CORES = flags.DEFINE_integer('cores', None, 'how many cores each side may use; default all')

_HEADER: tuple[str, ...] = (
    *('method', 'ours ms', 'torch ms', 'ours / torch, pair by pair', 'median', 'CPU time'),
    *('ours peak MiB', 'torch peak MiB', 'trainable'),
)
# Fields with the same name in transformers' config of the family.
_SHARED = (
    *('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads'),
    *('num_key_value_heads', 'head_dim', 'tie_word_embeddings'),
)


def task_of(family: str, method: str) -> dict[str, Any]:
    """The task of both workers."""
    config = vars(SIZES[family][options.SIZE.value])
    return {
        'family': family,
        'size': options.SIZE.value,
        'method': method,
        'route': _ROUTE.value,
        'scan': _SCAN.value,
        'config': {name: config[name] for name in _SHARED if name in config},
        'vocab_size': config['vocab_size'],
        'shape': BATCHES[family][options.SIZE.value],
        'cores': _CORES.value or len(os.sched_getaffinity(0)),
        'warm_up': 2,
    }


def measure(family: str, method: str) -> tuple[str, ...]:
    """One row: all pairs of one model and method."""
    task = json.dumps(task_of(family, method))
    with contextlib.ExitStack() as stack:
        sides = {
            module: stack.enter_context(turns.Worker([python, '-m', f'benchmarks.{module}', task]))
            for module, python in _sides()
        }
        answers = {module: [] for module in sides}
        for _ in range(options.PAIRS.value):
            for module, worker in sides.items():
                answers[module].append(worker.steps(_STEPS.value))
        return row(method, answers['jax_step_time'], answers.get('torch_step_time', []))


def _sides() -> list[tuple[str, str]]:
    ours = [('jax_step_time', sys.executable)]
    return [*ours, ('torch_step_time', _TORCH.value)] if _TORCH.value else ours


def row(method: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> tuple[str, ...]:
    """The cells of one row, from the answers of each turn.

    Raises:
        ValueError: the two sides do not train the same number of parameters.
    """
    mine, other = _medians(ours, 'ms'), _medians(theirs, 'ms')
    if theirs and theirs[0]['trainable'] != ours[0]['trainable']:
        raise ValueError(
            f'{method}: ours trains {ours[0]["trainable"]:,} parameters, theirs '
            f'{theirs[0]["trainable"]:,}; the steps must be the same'
        )
    ratios = _ratios(mine, other)
    processor = _ratios(_medians(ours, 'cpu_ms'), _medians(theirs, 'cpu_ms'))
    return (
        method,
        f'{statistics.median(mine):.0f}',
        f'{statistics.median(other):.0f}' if theirs else '',
        ' '.join(f'{ratio:.2f}' for ratio in ratios),
        f'{statistics.median(ratios):.2f}' if theirs else '',
        f'{statistics.median(processor):.2f}' if theirs else '',
        f'{ours[-1]["peak_rss_mib"]:.0f}',
        f'{theirs[-1]["peak_rss_mib"]:.0f}' if theirs else '',
        f'{ours[0]["trainable"]:,}',
    )


def _medians(turns_of_side: list[dict[str, Any]], name: str) -> list[float]:
    return [statistics.median(turn[name]) for turn in turns_of_side]


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    # Without a torch side there are no ratios.
    return [a / b for a, b in zip(ours, theirs, strict=bool(theirs))]


def main(argv: Sequence[str]) -> None:
    del argv
    pages = []
    for family in options.families():
        shape = ' x '.join(map(str, BATCHES[family][options.SIZE.value]))
        layers = 'scanned' if _SCAN.value else 'looped'
        title = f'{TITLES[family, options.SIZE.value]}, batch {shape}, {layers} layers'
        table: list[tuple[str, ...]] = [_HEADER]
        for method in _METHODS.value:
            table.append(measure(family, method))
            print(*table[-1], sep=' | ', flush=True)
        print(f'\n{title}\n{report.plain(table)}\n')
        pages.append(f'**{title}**\n\n{report.markdown(table)}')
    load = ' '.join(f'{value:.1f}' for value in os.getloadavg())
    made = f'{report.versions("jax", "jaxlib", "flax", "optax")}; load averages at the end {load}.'
    print(made)
    if options.WRITE.value:
        report.write_section('time', '\n\n'.join([*pages, made]))


if __name__ == '__main__':
    app.run(main)
