"""Libraries of a dependency group of pyproject.toml, imported where they are used."""

import importlib
from typing import Any


def library(module: str, group: str, use: str) -> Any:
    """A module of a dependency group.

    Raises:
        ValueError: it is not installed; says what uses it and what to install.

    Example:
        >>> library('json', 'datasets', 'this table').dumps(1)
        '1'
        >>> library('none_such', 'ray', '--ray')
        Traceback (most recent call last):
        ValueError: --ray needs none_such, which is not installed: uv pip install --group ray
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f'{use} needs {module}, which is not installed: uv pip install --group {group}'
        ) from error
