"""Config files in Python as modules, and their functions that make the rows of a sweep."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_TAKES = {'sweep': 'add', 'search': 'trial'}


def load_module(path: str) -> ModuleType:
    """The config file as a module.

    Raises:
        ValueError: no Python file is there.
    """
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f'{path} is no config file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_of(module: ModuleType, kind: str, name: str) -> Callable[..., Any]:
    """The function of a config file that makes rows.

    Args:
        module: the config file.
        kind: 'sweep' or 'search'.
        name: the part of the function's name after `<kind>_`.

    Raises:
        ValueError: it does not exist; the message lists the ones that do.
    """
    prefix = f'{kind}_'
    found = getattr(module, f'{prefix}{name}', None)
    if found is None:
        known = [each.removeprefix(prefix) for each in vars(module) if each.startswith(prefix)]
        raise ValueError(
            f'no {kind} {name!r} in {module.__name__}: '
            + (
                f'it has {", ".join(known)}'
                if known
                else f'write def {prefix}{name}({_TAKES[kind]})'
            )
        )
    return found
