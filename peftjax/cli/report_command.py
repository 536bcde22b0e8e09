"""`peftjax report`: the page about a sweep, finished or not."""

import argparse
from pathlib import Path

from peftjax.cli.parser import Parser
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.page import write_report


def add_arguments(parser: Parser) -> None:
    parser.add_argument('folder', help='the folder of a sweep')


def run(arguments: argparse.Namespace) -> None:
    """Writes the page and prints its path.

    Raises:
        ValueError: the folder holds no sweep.
    """
    folder = SweepFolder(Path(arguments.folder))
    if not folder.begun:
        raise ValueError(f'{folder.path} holds no sweep; give the --workdir of a peftjax sweep')
    print(write_report(folder))
