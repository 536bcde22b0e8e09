"""Builds the chain of methods from settings."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import peftjax
from peftjax.train.settings import Settings, SettingsError

USUAL: Mapping[str, Any] = {'targets': 'all-linear', 'rank': 8}
"""Values for arguments that a method needs and the settings do not give."""


def build_transform(
    settings: Settings, found: Mapping[str, Mapping[str, Any]] | None = None
) -> peftjax.PeftTransform:
    """Chains the methods of the settings, in their order.

    Each name is a function of peftjax and has its arguments in the section of its name, so a method
    that is added to peftjax can be used here as it is.

    Args:
        settings: of the run.
        found: further arguments by method, which replace those of the settings.

    Raises:
        SettingsError: a name is not a function of peftjax, or an argument is missing or unknown.
    """
    methods = []
    for name in settings.methods:
        if name not in peftjax.__all__:
            raise SettingsError(
                f'methods names {name!r}, which peftjax does not have; '
                f'it has {", ".join(peftjax.__all__)}'
            )
        make = getattr(peftjax, name)
        arguments = {**settings.section(name), **(found or {}).get(name, {})}
        arguments = {**_usual(make), **arguments}
        try:
            inspect.signature(make).bind(**arguments)
        except TypeError as error:
            raise SettingsError(
                f'{name} in methods: {error}; write for example --{name}.'
                f'{next(iter(inspect.signature(make).parameters))}=...'
            ) from None
        methods.append(make(**arguments))
    return peftjax.chain(*methods)


def _usual(make: Callable[..., Any]) -> dict[str, Any]:
    """Values from `USUAL` for the arguments that a method on matrices needs."""
    needed = {
        name
        for name, argument in inspect.signature(make).parameters.items()
        if argument.default is inspect.Parameter.empty
    }
    whole = make in (peftjax.select, peftjax.full)
    return {} if whole else {name: value for name, value in USUAL.items() if name in needed}
