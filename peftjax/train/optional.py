"""Imports libraries of the extras in setup.cfg when they are used."""

import importlib
from typing import Any


def library(module: str, extra: str, use: str) -> Any:
    """A module that an extra installs.

    Raises:
        ValueError: it is not installed; the message says what uses it and what to install.

    Example:
        >>> library('json', 'datasets', 'this table').dumps(1)
        '1'
        >>> library('none_such', 'ray', '--ray')
        Traceback (most recent call last):
        ValueError: --ray needs none_such, which is not installed: pip install 'peftjax[ray]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{use} needs {module}, which is not installed: pip install 'peftjax[{extra}]'"
        ) from error
