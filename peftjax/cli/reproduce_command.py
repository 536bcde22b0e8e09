"""`peftjax reproduce`: runs of published rows, and their numbers beside the published ones."""

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
_WIDTH = 180  # of the list where it is not shown in a terminal


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        'row',
        nargs='?',
        help="of the table, such as 'lora.rte', or a study of this repository, 'study.cost'",
    )
    parser.add_argument(
        '--list',
        nargs='?',
        const='*',
        metavar='ROWS',
        help="say of each row, or of those like 'lora.*', what is missing here to run it",
    )
    parser.add_argument(
        '--papers', default=_TABLE, metavar='FILE', help=f'a .toml file with the rows ({_TABLE})'
    )
    parser.add_argument(
        '--studies',
        default='experiments.studies.registry:find_study',
        metavar='MODULE:FUNCTION',
        help='gives a study by its name (%(default)s)',
    )
    parser.add_argument('--workdir', metavar='DIR', help='gets a folder for each run of the row')
    parser.add_argument(
        '--seeds', type=whole(1), metavar='N', help='how many runs; unless given, as in the paper'
    )
    parser.add_settings('model', 'data', 'run', 'mesh', sections=True)


def run(arguments: argparse.Namespace) -> None:
    """Prints what can run here; or runs a row and prints its number beside the published one.

    Raises:
        ValueError: no such table, row or study, or no work folder.
        SystemExit: with 1, a run that failed.
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
    """Runs a study into the work folder, as its protocol says, and prints what came out."""
    if arguments.changes or arguments.seeds is not None:
        raise UsageError('the protocol of a study stands in its code; leave other flags out')
    find = find_function('studies', arguments.studies, ())
    study = find(arguments.row.removeprefix(_STUDY))
    quiet_libraries()
    keep_compiled_programs()
    print(study.reproduce(Path(arguments.workdir)))


def _print_list(rows: dict[str, reproduce.Row], pattern: str) -> None:
    chosen = [row for key, row in rows.items() if fnmatch.fnmatchcase(key, pattern)]
    if not chosen:
        raise UsageError(f'no row is like {pattern!r}; --list without it names all')
    terminal(width=_WIDTH).print(reproduce.listing(chosen, reproduce.missing))
