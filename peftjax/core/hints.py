"""Suggestions for a target that matches nothing."""

import re
from collections.abc import Iterable, Mapping

from peftjax.core import paths


def as_last_part(pattern: paths.Pattern, names: Iterable[str]) -> str:
    """A suggestion for a bare name that is the last part of a path, but not a whole path."""
    text = pattern.text
    if re.fullmatch(r'[A-Za-z0-9_]+', text) and any(name.endswith('/' + text) for name in names):
        return f"For the last part of a path, write [{text!r}] or r'.*/{text}'. "
    return ''


def selecting(pattern: paths.Pattern, leaves: Iterable[str]) -> str:
    """The `select` of the leaves that a pattern means, by their own path or by their module's."""
    text, means = pattern.text, pattern.regex.text
    if not any(map(pattern.matches, leaves)):
        text = means = f'({means})/[^/]*'
    shown = repr(text) if "'" in text else f"r'{text}'"
    return f'peftjax.select({shown})' if means == text else f'peftjax.select([{text!r}])'


def of_a_stack(pattern: paths.Pattern, stacks: Mapping[str, tuple[int, ...]]) -> str:
    """A suggestion for a pattern that names one layer of stacked layers."""
    for path, stack in stacks.items():
        for name in _unstacked(path, stack[0]) if stack else ():
            if pattern.matches(name) or pattern.matches(paths.parent(name)):
                return (
                    f'It would match {name!r}, and this model keeps its {stack[0]} layers stacked: '
                    f'{path!r} is that of all layers. To adapt some layers alone, build the model '
                    'with its layers apart: peftjax.load(..., scan=False), or without the scan '
                    'in a module of your own. '
                )
    return ''


def _unstacked(path: str, layers: int) -> Iterable[str]:
    """The names that a leaf of stacked layers would have if the layers were separate."""
    parts = path.split('/')
    for depth in range(len(parts)):
        for layer in range(layers):
            for number in (f'_{layer}', f'/{layer}'):
                yield '/'.join([*parts[:depth], parts[depth] + number, *parts[depth + 1 :]])
