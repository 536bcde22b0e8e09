"""The programs in this folder, as commands of `peftjax`."""

import sys
from collections.abc import Sequence

from peftjax import cli


def translated(argv: Sequence[str]) -> list[str]:
    """A command line with flags of ml_collections, `--config.lr=1e-3`, written as `--lr=1e-3`.

    Example:
        >>> translated(['--config', 'a.py', '--config.lr=1e-3'])
        ['--config', 'a.py', '--lr=1e-3']
    """
    return [
        '--' + each.removeprefix('--config.') if each.startswith('--config.') else each
        for each in argv
    ]


def run(command: str) -> None:
    """Runs a command of peftjax on the arguments of this program, and exits with its status."""
    sys.exit(cli.main([command, *translated(sys.argv[1:])]))
