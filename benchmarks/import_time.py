"""Times `import peftjax` against `import flax`, each in a fresh process, in turns.

Parts that `import peftjax` defers are timed too: NNX for `wrap`, families and files for `load`.

python -m benchmarks.import_time --write
"""

import statistics
import subprocess
import sys
from collections.abc import Sequence

from absl import app

from benchmarks import options, report
from benchmarks.turns import ROOT

# Timed inside the process, without the start of Python.
_CODE = 'import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)'
_TIMED = ('import flax', 'from flax import nnx', 'import peftjax', 'from peftjax import load, wrap')


def seconds(statement: str) -> float:
    """The seconds of one statement in a new process."""
    done = subprocess.run(
        [sys.executable, '-c', _CODE.format(statement)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return float(done.stdout)


def main(argv: Sequence[str]) -> None:
    del argv
    # Once beforehand, so that no turn reads files from a cold disk.
    for statement in _TIMED:
        seconds(statement)
    turns = [[seconds(statement) for statement in _TIMED] for _ in range(options.PAIRS.value)]
    table = [('statement', 'median s', 'of flax')]
    for statement, mine in zip(_TIMED, zip(*turns, strict=True), strict=True):
        ratio = statistics.median(a / turn[0] for a, turn in zip(mine, turns, strict=True))
        table.append((f'`{statement}`', f'{statistics.median(mine):.2f}', f'{ratio:.2f}'))
    made = f'Median of {len(turns)} turns. {report.versions("jax", "flax")}.'
    print(f'{report.plain(table)}\n{made}')
    if options.WRITE.value:
        report.write_section('import', f'{report.markdown(table)}\n\n{made}')


if __name__ == '__main__':
    app.run(main)
