"""`peftjax reproduce`: runs that repeat published results, and both numbers side by side."""

import argparse
import fnmatch
from pathlib import Path

import peftjax
from peftjax import reproduce
from peftjax.cli.parser import Parser, UsageError, whole
from peftjax.train.compilation_cache import keep_compiled_programs
from peftjax.train.dotted import find_function
from peftjax.train.endings import plain_endings
from peftjax.train.progress import quiet_libraries, terminal

_TABLE = 'configs/papers.toml'
_STUDY = 'study.'
_WIDTH = 180  # of the list, where no terminal has a width


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        'row',
        nargs='?',
        help="of the table, such as 'lora.rte'; or a study of this repository, such as "
        "'study.cost'",
    )
    parser.add_argument(
        '--list',
        nargs='?',
        const='*',
        metavar='ROWS',
        help="list all rows, or those like 'lora.*', and what each needs that is not here",
    )
    parser.add_argument(
        '--papers', default=_TABLE, metavar='FILE', help=f'a .toml file with the rows ({_TABLE})'
    )
    parser.add_argument(
        '--studies',
        default='experiments.studies.registry:find_study',
        metavar='MODULE:FUNCTION',
        help='the function that finds a study by name (%(default)s)',
    )
    parser.add_argument('--workdir', metavar='DIR', help='will hold a folder for each run')
    parser.add_argument(
        '--seeds', type=whole(1), metavar='N', help="how many runs; the default is the paper's"
    )
    parser.add_settings('model', 'data', 'run', 'mesh', sections=True)


def run(arguments: argparse.Namespace) -> None:
    """Lists the rows; or runs one and prints its result beside the published one.

    Raises:
        ValueError: the table, row or study does not exist, or no work folder is given.
        SystemExit: with 1, after a failed run.
    """
    if (arguments.row is None) == (arguments.list is None):
        raise UsageError("give a row, or --list; 'peftjax reproduce --list' names the rows")
    if arguments.list is not None:
        _print_list(reproduce.table(arguments.papers), arguments.list)
        return
    if arguments.workdir is None:
        raise UsageError('no work folder is given; write for example --workdir runs/papers')
    if arguments.row.startswith(_STUDY):
        _run_study(arguments)
        return
    row = reproduce.find(reproduce.table(arguments.papers), arguments.row)
    if arguments.seeds is not None and arguments.seeds < 1:
        raise UsageError(f'--seeds {arguments.seeds} is below 1')
    quiet_libraries()
    keep_compiled_programs()
    console = terminal()
    with plain_endings():
        result = reproduce.run(
            row,
            Path(arguments.workdir),
            console,
            train=peftjax.train.train,
            seeds=arguments.seeds,
            changes=arguments.changes,
        )
    console.print(result.show())


def _run_study(arguments: argparse.Namespace) -> None:
    """Runs a study by its protocol, and prints its results."""
    if arguments.changes or arguments.seeds is not None:
        raise UsageError('a study has its settings in its code; leave --seeds and settings out')
    find = find_function('studies', arguments.studies, ())
    study = find(arguments.row.removeprefix(_STUDY))
    quiet_libraries()
    keep_compiled_programs()
    print(study.reproduce(Path(arguments.workdir)))


def _print_list(rows: dict[str, reproduce.Row], pattern: str) -> None:
    chosen = [row for key, row in rows.items() if fnmatch.fnmatchcase(key, pattern)]
    if not chosen:
        raise UsageError(f'no row matches {pattern!r}; --list alone lists all rows')
    terminal(width=_WIDTH).print(reproduce.listing(chosen, reproduce.missing))
