"""The page of methods, from their docstrings: python -m tests.methods_page > docs/methods.md."""

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import peftjax

HEAD = """\
# The methods

Written by `python -m tests.methods_page > docs/methods.md` from the docstrings; do not edit. Each
entry says what the method computes, where it acts, what trains, how it starts, whether it merges,
what it costs, which paper it comes from, and where we differ from the authors' code.

Costs are those that a forward pass on T tokens adds for each matrix or module. A step adds three
times as much (forward, the gradient by the input, the gradient by what trains), where an entry does
not say otherwise. `tests/test_costs.py` holds both to 3 % of what the compiler counts.
"""


def methods() -> dict[str, Callable[..., Any]]:
    """The public functions that stand in a file of `peftjax.methods`, by name."""
    public = {name: getattr(peftjax, name) for name in peftjax.__all__}
    return {
        name: value
        for name, value in public.items()
        if inspect.isfunction(value) and value.__module__.startswith('peftjax.methods.')
    }


def page() -> str:
    entries = methods()
    index = '\n'.join(
        f'- [`{name}`](#{name}): {summary_of(function)}' for name, function in entries.items()
    )
    return '\n\n'.join([HEAD + '\n' + index, *map(_entry, entries.values())]) + '\n'


def docstring(function: Callable[..., Any]) -> str:
    text = inspect.getdoc(function)
    assert text is not None, f'{function.__name__} has no docstring'
    return text


def summary_of(function: Callable[..., Any]) -> str:
    return docstring(function).partition('\n')[0]


def _entry(function: Callable[..., Any]) -> str:
    name, file = function.__name__, function.__module__.replace('.', '/')
    arguments = ', '.join(inspect.signature(function).parameters)
    head = f'## {name}\n\n[`{file}.py`](../{file}.py): `{name}({arguments})`'
    blocks = re.split(r'\n{2,}', docstring(function))
    return '\n\n'.join([head, *map(_block, blocks)])


def _block(text: str) -> str:
    """One paragraph, section or example of a docstring as Markdown."""
    if text.startswith('>>>'):
        return f'```python\n{text}\n```'
    title, _, body = text.partition('\n')
    if title not in ('Args:', 'Returns:', 'Raises:', 'References:'):
        return text
    body = inspect.cleandoc('\n' + body)
    if title in ('Args:', 'Raises:'):
        body = re.sub(r'^(?=\S)', '- ', body, flags=re.MULTILINE)
    return f'**{title[:-1]}**\n\n{body}'


if __name__ == '__main__':
    sys.stdout.write(page())
