"""The command `peftjax`: trains, uses, looks at, merges and converts adapters."""

import contextlib
import difflib
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

import jax

import peftjax
from peftjax.cli.commands import COMMANDS, Command, load_command, overview
from peftjax.cli.parser import Parser
from peftjax.train.files import readable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 on success; 2, after one line of text, if a flag or a file was wrong or memory ran out;
        130 if it was interrupted from the keyboard.

    Raises:
        SystemExit: with 1 after a failed run, and with 0 after `--help` of a command.

    Example:
        >>> main(['merge', 'no/such/folder', 'out', '--dtyp', 'float16'])
        2
    """
    given = list(sys.argv[1:] if argv is None else argv)
    name = given[0] if given else ''
    if name in ('-h', '--help'):
        print(overview())
        return 0
    if name == '--version':
        print(_versions())
        return 0
    try:
        run(_command(name), given[1:])
    except (ValueError, OSError, ImportError) as error:
        return _refused(name, _line(error))
    except MemoryError as error:
        return _refused(name, f'there is not enough memory: {error}')
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return _refused(name, f'there is not enough memory: {str(error).splitlines()[0]}')
    except KeyboardInterrupt:
        return 130
    return 0


def run(command: Command, argv: Sequence[str]) -> None:
    """Reads the flags of a command and runs it.

    Raises:
        ValueError: a flag, a value or a file is wrong.
    """
    # Tasks, trackers and configs of the user are imported from here, as `python -m` does.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module = load_command(command)
    parser = Parser(command)
    module.add_arguments(parser)
    module.run(parser.read(argv))


def _command(name: str) -> Command:
    if not name:
        raise ValueError('no command is given; peftjax --help lists the commands')
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=0)
        raise ValueError(f'no command {name!r}; near names: {", ".join(near)}')
    return COMMANDS[name]


def _refused(name: str, text: str) -> int:
    """Prints why a command ended, and returns its exit code."""
    print(readable(f'peftjax{name and " " + name}: {text}'), file=sys.stderr)
    return 2


def _line(error: Exception) -> str:
    """The text of an error; for a file, its name and the reason without the error number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f'{error.filename}: {error.strerror}'
    return str(error)


def _versions() -> str:
    """The versions that a bug report needs."""
    found = []
    for name in ('jax', 'flax'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f'{name} {metadata.version(name)}')
    python = f'Python {platform.python_version()} on {platform.system()} {platform.machine()}'
    return ', '.join([f'peftjax {peftjax.__version__}', *found, python])
