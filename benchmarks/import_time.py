"""Times `import peftjax` beside `import flax`, each in a fresh process, in turns.

python -m benchmarks.import_time --write
"""

import statistics
import subprocess
import sys
from collections.abc import Sequence

from absl import app

from benchmarks import options, report
from benchmarks.turns import ROOT

# Timed inside the process: starting Python is neither's cost.
_CODE = 'import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)'


def seconds(package: str) -> float:
    """Of importing `package` in a new process."""
    done = subprocess.run(
        [sys.executable, '-c', _CODE.format(package)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return float(done.stdout)


def main(argv: Sequence[str]) -> None:
    del argv
    # Once each beforehand: reading files from a cold disk is neither's cost.
    seconds('flax')
    seconds('peftjax')
    pairs = [(seconds('peftjax'), seconds('flax')) for _ in range(options.PAIRS.value)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    table = [
        ('import', 'median s', 'of flax'),
        ('flax', f'{theirs:.2f}', '1'),
        ('peftjax', f'{ours:.2f}', f'{ratio:.2f}'),
    ]
    made = f'Median of {len(pairs)} pairs. {report.versions("jax", "flax")}.'
    print(f'{report.plain(table)}\n{made}')
    if options.WRITE.value:
        report.write_section('import', f'{report.markdown(table)}\n\n{made}')


if __name__ == '__main__':
    app.run(main)
