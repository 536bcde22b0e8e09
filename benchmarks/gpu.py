"""Measures peftjax on one GPU against torch and peft, in a short session.

    python -m benchmarks.gpu --out runs/gpu
    python -m benchmarks.gpu --out runs/gpu --tiny --skip-torch    # small shapes, on any device

It takes at most `--minutes` (8). Weights are random, in the shapes of TinyLlama (1.1B) and SmolLM2
(135M).

Rows: a training step in bfloat16 of 4 x 2048 tokens with LoRA on q and v, LoRA on all matrices, all
parameters, and LoRA on NF4, each by peftjax and by torch with transformers and peft on the same
GPU; 1, 4, 16 and 64 runs in one program; decoding of 64 rows; fused attention against the plain
route.

Each row runs in a separate process, one after another, so that rows do not share failures or peaks
of memory. OUT/gpu.json holds every number and OUT/gpu.md the tables; both are written after each
row. Model FLOPs for each token are 4N through a frozen base of N parameters, forward and backward,
and 6N if all parameters train; MFU is the ratio of their rate to the machine's rate for bfloat16.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import gpu_table, report
from benchmarks.gpu_models import METHODS, SHAPES
from peftjax.plan.machines import machine_of

ROOT = pathlib.Path(__file__).parents[1]
# Seconds: a row needs at least LEAST to begin, and is ended after MOST.
LEAST, MOST = 15.0, 150.0
Row = dict[str, Any]


def rows(tiny: bool) -> list[Row]:
    """All rows, the most important first: the last ones are skipped if time runs out."""
    large, small = ('tiny', 'tiny') if tiny else ('1.1B', '135M')
    size = {'rows': 2, 'length': 32, 'steps': 2} if tiny else {}
    step = {'kind': 'train', 'shape': large, 'remat': None, 'rows': 4, 'length': 2048, 'steps': 12}
    pairs = [
        {**step, 'method': method, 'side': side, **size}
        for method in METHODS
        for side in ('peftjax', 'torch')
    ]
    attention = {'kind': 'attention', 'rows': 4, 'length': 2048, 'heads': 32, 'shared': 4}
    attention |= {'width': 64, 'steps': 20, **size}
    sweep = {'kind': 'sweep', 'shape': small, 'remat': None, 'rows': 1, 'length': 1024, 'steps': 10}
    sweeps = [{**sweep, 'runs': runs, **size} for runs in ((1, 4) if tiny else (1, 16, 4, 64))]
    decode = {'kind': 'decode', 'shape': large, 'rows': 64, 'length': 128, 'new': 128, 'steps': 3}
    decode |= {'new': 4, **size} if tiny else {}
    many = decode['rows']
    decodes = [{**decode, 'adapters': count, 'side': 'peftjax'} for count in (0, many, 1)]
    # torch decodes so slowly with many adapters that there is only one turn.
    slow = {**decode, 'adapters': many, 'side': 'torch', 'method': 'LoRA q,v', 'remat': None}
    decodes.append({**slow, 'new': min(16, decode['new']), 'steps': 1})
    lean = [{**pairs[i], 'remat': 'full'} for i in (0, 1)]
    ours = [{'side': 'peftjax', **each} for each in (attention, *sweeps)]
    return [*pairs[:4], ours[0], *ours[1:3], *decodes, *pairs[4:], *ours[3:], *lean]


def command(row: Row, python: str, torch_python: str) -> list[str]:
    """The program that measures a row."""
    if row['side'] == 'peftjax':
        return [python, '-m', 'benchmarks.gpu_rows', json.dumps(row)]
    told = json.dumps({**row, 'config': SHAPES[row['shape']]})
    return [torch_python, '-m', 'benchmarks.torch_gpu', told]


def measure(words: Sequence[str], seconds: float) -> dict[str, Any]:
    """Runs one row: its numbers, or the reason why there are none as 'error'."""
    try:
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {'error': f'not done after {seconds:.3g} s'}
    except OSError as error:
        return {'error': str(error)}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {'error': f'status {done.returncode}: {_last_lines(done.stderr)}'}
    try:
        return json.loads(lines[-1])
    except json.JSONDecodeError:
        return {'error': f'printed no result but {lines[-1][:200]!r}'}


def _last_lines(text: str) -> str:
    return '\n'.join(text.strip().splitlines()[-8:])[-1500:]


def with_mfu(result: dict[str, Any]) -> dict[str, Any]:
    """The result with its MFU, if the rate of the machine is known."""
    machine = machine_of(result.get('device', ''))
    if machine is None or 'model_tflops' not in result:
        return result
    return {**result, 'mfu': 1e12 * result['model_tflops'] / machine.flops}


def run(out: pathlib.Path, todo: Sequence[Row], minutes: float, torch_python: str) -> list[Row]:
    """Measures rows until the time is over, and writes all results after each of them."""
    out.mkdir(parents=True, exist_ok=True)
    begun, done = time.monotonic(), []
    for row in todo:
        left = 60 * minutes - (time.monotonic() - begun)
        at = time.monotonic()
        if left < LEAST:
            result: dict[str, Any] = {'skipped': f'{left:.0f} s of {minutes:g} minutes were left'}
        else:
            words = command(row, sys.executable, torch_python)
            result = with_mfu(measure(words, min(left, MOST)))
        done.append({**row, 'seconds': time.monotonic() - at, 'result': result})
        print(gpu_table.line(done[-1]), flush=True)
        text = {'versions': report.versions('jax', 'jaxlib', 'flax', 'optax'), 'rows': done}
        _write(out / 'gpu.json', json.dumps(text, indent=1) + '\n')
        _write(out / 'gpu.md', gpu_table.page(done) + f'\n\n{text["versions"]}\n')
    return done


def _write(path: pathlib.Path, text: str) -> None:
    """Replaces a file at once, since the process may be killed at any time."""
    fresh = path.with_suffix('.part')
    fresh.write_text(text)
    os.replace(fresh, path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--out', type=pathlib.Path, required=True, help='the folder to write')
    parser.add_argument('--minutes', type=float, default=8.0, help='later rows are skipped')
    parser.add_argument('--tiny', action='store_true', help='small shapes, to try the program')
    parser.add_argument(
        '--kinds', nargs='*', metavar='KIND', help='train, attention, ...; default: all'
    )
    parser.add_argument('--torch-python', default=sys.executable, help='has torch and peft')
    parser.add_argument('--skip-torch', action='store_true', help='skip the rows of torch')
    given = parser.parse_args(argv)
    todo = [
        row
        for row in rows(given.tiny)
        if not (given.skip_torch and row['side'] == 'torch')
        and (given.kinds is None or row['kind'] in given.kinds)
    ]
    run(given.out, todo, given.minutes, given.torch_python)
    print(f'\n{(given.out / "gpu.md").read_text()}')


if __name__ == '__main__':
    main()
