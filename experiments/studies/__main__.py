"""Runs a study, or draws the figures and tables of all: python -m experiments.studies --help."""

import argparse
from pathlib import Path

from experiments.studies import page
from experiments.studies.registry import STUDIES
from peftjax.train.compilation_cache import keep_compiled_programs


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog='python -m experiments.studies', description=__doc__)
    parser.add_argument('study', nargs='?', choices=sorted(STUDIES), help='what to run')
    parser.add_argument('--results', type=Path, help='its folder, which is gone on with')
    parser.add_argument(
        '--write',
        action='store_true',
        help='draw all figures, and write the part of REPRODUCTIONS.md that comes from results',
    )
    asked = parser.parse_args()
    if asked.write == (asked.study is not None) or (asked.study and asked.results is None):
        parser.error('give a study and --results, or --write alone')
    if asked.write:
        page.write()
        return
    keep_compiled_programs()
    study = STUDIES[asked.study]
    study.run(asked.results, study.protocol)


if __name__ == '__main__':
    main()
