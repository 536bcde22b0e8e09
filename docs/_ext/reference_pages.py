"""The page of each public name that is no method, and the lists of names."""

import importlib
import inspect
from collections.abc import Iterator

from sphinx.pycode import ModuleAnalyzer

from docs._ext.catalogue import (
    PublicName,
    defined_in,
    docstring,
    namespaces,
    public_names,
    summary_of,
)
from docs._ext.method_pages import toctree


def pages() -> Iterator[tuple[str, str]]:
    """Path in docs/ without a suffix, and text, of every page of the reference."""
    names = public_names()
    yield 'reference/index', _index()
    for namespace in namespaces():
        inside = [each for each in names if each.namespace == namespace]
        yield f'reference/{namespace}', _namespace(namespace, inside)
    for each in names:
        if each.page.startswith('reference/'):
            yield each.page, _name(each)


def _index() -> str:
    rows = [
        f'| [`{name}`]({name}.md) | {summary_of(importlib.import_module(name))} |'
        for name in namespaces()
    ]
    parts = [
        '# Reference',
        'Every public name, with its signature. Shapes stand in the annotations: '
        '`Float[Array, "in out"]` is a floating array of two axes.',
        '\n'.join(['| namespace | what is in it |', '|---|---|', *rows]),
        toctree(namespaces(), 'hidden'),
    ]
    return '\n\n'.join(parts) + '\n'


def _namespace(namespace: str, names: list[PublicName]) -> str:
    kinds = {'Functions': [], 'Methods': [], 'Types': [], 'Errors': [], 'Constants': []}
    for each in names:
        kinds[_kind(each)].append(each)
    parts = [f'# {namespace}', docstring(importlib.import_module(namespace))]
    for kind, members in kinds.items():
        if members:
            rows = [f'| [`{each.name}`](/{each.page}.md) | {_line(each)} |' for each in members]
            parts.append('\n'.join([f'## {kind}\n', '| name | what it is |', '|---|---|', *rows]))
    own = [each.page.partition('/')[2] for each in names if each.page.startswith('reference/')]
    parts.append(toctree(own, 'hidden'))
    return '\n\n'.join(parts) + '\n'


def _kind(name: PublicName) -> str:
    if name.page.startswith('methods/'):
        return 'Methods'
    if inspect.isfunction(name.value):
        return 'Functions'
    if not inspect.isclass(name.value) or hasattr(name.value, '__origin__'):
        return 'Constants'
    return 'Errors' if issubclass(name.value, Exception) else 'Types'


def _line(name: PublicName) -> str:
    return _text(name).partition('\n')[0].replace('|', '\\|')


def _text(name: PublicName) -> str:
    """The docstring of a name; of a constant, the string below its assignment."""
    if _kind(name) != 'Constants':
        return docstring(name.value)
    module = defined_in(name.namespace, name.name)
    strings = ModuleAnalyzer.for_module(module).find_attr_docs()
    if ('', name.name) not in strings:
        raise ValueError(f'{name.full} has no string below its assignment in {module}')
    return '\n'.join(strings['', name.name]).strip()


def _name(name: PublicName) -> str:
    title = f'# {name.full}'
    kind = _kind(name)
    if kind == 'Functions':
        body = f'.. autofunction:: {name.full}'
    elif kind == 'Constants':
        text = _text(name).replace('\n', '\n   ')
        body = f'.. py:data:: {name.full}\n\n   {text}'
    else:
        directive = 'autoexception' if kind == 'Errors' else 'autoclass'
        bases = '\n   :show-inheritance:' if kind == 'Errors' else ''
        body = f'.. {directive}:: {name.full}\n   :members:{bases}'
    return f'{title}\n\n```{{eval-rst}}\n{body}\n```\n'
