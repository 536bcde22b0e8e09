"""How command lines are read: errors suggest near names, and help begins with an example."""

import argparse
import difflib
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from peftjax.cli import settings_flags
from peftjax.cli.commands import Command
from peftjax.train.settings import Settings

_SECTIONS = (
    'Arguments of the chosen functions are flags too: --lora.rank 4, --adamw.weight_decay 0.1. '
    'Values are read as Python literals where possible: [1, 2], None, true.'
)


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Reads whole numbers from `least` to `most`.

    Example:
        >>> whole(1)('16')
        16
    """

    def read(text: str) -> int:
        plain = text.removeprefix('-').isdecimal() and len(text) < 20
        if not plain or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f'{text[:40]!r} is no whole number from {least} to {most}; write {least} or more'
            )
        return int(text)

    return read


def number(least: float) -> Callable[[str], float]:
    """Reads finite numbers of at least `least`.

    Example:
        >>> number(0)('0.5')
        0.5
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(
                f'{text[:40]!r} is not allowed; write a finite number, {least:g} or more'
            )
        return value

    return read


class UsageError(ValueError):
    """A flag or a value that a command does not take."""


class Parser(argparse.ArgumentParser):
    """Reads the command line of one command.

    Attributes:
        command: its name, usage and help, see `Command`.
    """

    def __init__(self, command: Command):
        self.command = command
        width = min(shutil.get_terminal_size().columns, 100)
        super().__init__(
            prog=f'peftjax {command.name}',
            usage=f'peftjax {command.name} {command.usage}' if command.usage else None,
            description=command.summary,
            formatter_class=lambda prog: argparse.HelpFormatter(
                prog, max_help_position=30, width=width
            ),
            allow_abbrev=False,
        )
        self._settings: Mapping[str, settings_flags.Flag] = {}
        self._sections = self._chained = False

    def add_settings(self, *groups: str, sections: bool = False, chained: bool = False) -> None:
        """Takes settings as flags, under their dotted names.

        Args:
            groups: fields of `Settings` that hold settings of their own ('model', 'data', 'mesh'),
                and 'run' for all others.
            sections: whether arguments of functions are flags too.
            chained: whether `--method` adds a method to the run's chain.
        """
        self._sections, self._chained = sections, chained
        for group in groups:
            found = settings_flags.flags_of(group)
            self._settings = {**self._settings, **found}
            title = self.add_argument_group(f'settings of the {group}')
            for name, flag in found.items():
                title.add_argument(f'--{name}', metavar=flag.metavar, help=flag.help)
            if group == 'run' and chained:
                title.add_argument('--method', metavar='CALL', help=settings_flags.METHOD)
        if sections:
            self.epilog = _SECTIONS

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments. `changes` has the settings by dotted name, `chain` the methods.

        Raises:
            UsageError: a flag is unknown, or a value cannot be read.
        """
        taken = settings_flags.take(
            [self._hyphened(token) for token in argv],
            self._settings,
            sections=self._sections,
            chained=self._chained,
        )
        arguments, unknown = self.parse_known_intermixed_args(taken.left)
        if unknown:
            self.error(self._said_of(unknown[0]))
        arguments.changes, arguments.chain = taken.changes, taken.methods
        return arguments

    def _hyphened(self, token: str) -> str:
        """The token, with hyphens if it is a flag of the command written with underscores."""
        name, equals, value = token.partition('=')
        spelt = name.replace('_', '-')
        known = name.startswith('--') and spelt in self._option_string_actions
        return spelt + equals + value if known else token

    def format_help(self) -> str:
        return f'example: {self.command.example}\n\n{super().format_help()}'

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def _said_of(self, token: str) -> str:
        if not token.startswith('-'):
            return f'unexpected argument {token!r}; flags begin with --'
        name = token.partition('=')[0]
        known = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(name, known, n=3) or difflib.get_close_matches(
            name, known, n=1, cutoff=0
        )
        return f'unknown flag {name}; near names: {", ".join(near)}'


def add_config(parser: Parser) -> None:
    """The flag that names a config."""
    parser.add_argument(
        '--config',
        metavar='FILE',
        help='settings to start from: a .py file with get_config(argument), as in '
        'configs/lora.py:paper, a .json or .toml file, or the work folder of a run',
    )


def settings_of(arguments: argparse.Namespace, start: Settings) -> Settings:
    """The settings of `start`, changed by the flags.

    Raises:
        SettingsError: a setting is unknown, or a value has another type.
    """
    return settings_flags.changed(start, arguments.changes, arguments.chain)
