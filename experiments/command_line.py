"""Command lines of the programs here, in the grammar of the command `peftjax`."""

import sys
from collections.abc import Sequence

from peftjax import cli


def translated(argv: Sequence[str]) -> list[str]:
    """A command line with `--config.lr=1e-3` for `--lr=1e-3`, as ml_collections wrote it.

    Example:
        >>> translated(['--config', 'a.py', '--config.lr=1e-3'])
        ['--config', 'a.py', '--lr=1e-3']
    """
    return [
        '--' + each.removeprefix('--config.') if each.startswith('--config.') else each
        for each in argv
    ]


def run(command: str) -> None:
    """Runs a command of peftjax on the arguments of this program, and ends with its status."""
    sys.exit(cli.main([command, *translated(sys.argv[1:])]))
