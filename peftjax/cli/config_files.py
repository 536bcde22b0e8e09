"""Settings from a file: a config in Python, JSON or TOML, or the folder of an earlier run."""

import json
import tomllib
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from peftjax.sweep.modules import load_module
from peftjax.train.settings import Settings, SettingsError, read_settings


class ConfigFile(NamedTuple):
    """A config file, and the argument of its `get_config`.

    Attributes:
        path: of the file.
        argument: the text after the colon; None without a colon.
    """

    path: str
    argument: str | None = None

    @staticmethod
    def of(text: str) -> 'ConfigFile':
        """Reads `configs/lora.py` or `configs/lora.py:paper,row=rte`."""
        path, colon, argument = text.partition('.py:')
        return ConfigFile(f'{path}.py', argument) if colon else ConfigFile(text)


def read_config(text: str) -> Settings:
    """The settings of a config.

    Args:
        text: a Python file with `get_config(argument)`, its argument after a colon; a .json or
            .toml file; or the work folder of a run, whose config.json is read.

    Raises:
        SettingsError: the file does not exist or cannot be read, or has an unknown field.

    Example:
        >>> file = getfixture('tmp_path') / 'run.toml'
        >>> _ = file.write_text("lr = 0.1\\n[lora]\\nrank = 4")
        >>> read_config(str(file)).section('lora')
        {'rank': 4}
    """
    file = ConfigFile.of(text)
    path = Path(file.path)
    if path.is_dir():
        path /= 'config.json'
    if not path.is_file():
        raise SettingsError(f'{path} does not exist; --config takes a .py, .json or .toml file')
    if path.suffix == '.py':
        return read_settings(_python(file))
    try:
        content = path.read_text(encoding='utf-8')
        read = {'.json': json.loads, '.toml': tomllib.loads}[path.suffix](content)
    except KeyError:
        raise SettingsError(f'{path} is no .py, .json or .toml file') from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f'{path} is not valid {path.suffix[1:]}: {error}') from None
    if not isinstance(read, dict):
        raise SettingsError(
            f'{path} holds {str(read)[:40]!r}; write names and values, such as {{"lr": 1e-3}}'
        )
    return read_settings(read)


def _python(file: ConfigFile) -> Any:
    """What `get_config` of a Python file gives."""
    try:
        module = load_module(file.path)
        make = getattr(module, 'get_config', None)
        if make is None:
            raise SettingsError(f'{file.path} has no function get_config(argument=None)')
        return make() if file.argument is None else make(file.argument)
    except ValueError:
        raise
    except Exception as error:  # A config is a program, which may raise anything.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file.path]
        raise SettingsError(
            f'{file.path}, line {lines[-1] if lines else "?"}: {type(error).__name__}: {error}'
        ) from error
