"""Writes the page about a sweep anew: python -m experiments.report runs/sweep

At any time, from any number of finished rows. A sweep writes it by itself when it ends.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app

from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.page import write_report


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        sys.exit('give the folder of a sweep: python -m experiments.report runs/sweep')
    folder = SweepFolder(Path(argv[1]))
    if not folder.begun:
        sys.exit(f'{folder.path} holds no sweep')
    print(write_report(folder))


if __name__ == '__main__':
    app.run(main)
