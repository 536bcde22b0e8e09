"""Which methods and public names there are, found in the package itself."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import peftjax
from peftjax.core.transform import PeftTransform

DOCS = pathlib.Path(__file__).parents[1]
ROOT = DOCS.parent
TABLE = DOCS / '_ext' / 'methods.toml'
BESIDE = {
    'peftjax.core.leafwise': ('leafwise',),
    'peftjax.core.transform': ('described', 'padded_by'),
    'peftjax.core.weightwise': ('on_plain_dots',),
    'peftjax.sweep.folder': ('SweepFolder',),
    'peftjax.sweep.intervals': ('Interval', 'Setting', 'interval', 'settings'),
}
"""Public names of modules without an `__all__`: for authors of methods, and for readers of the
folders of sweeps."""


class Family(NamedTuple):
    """Methods of one kind, as the site groups them.

    Attributes:
        name: in addresses.
        title: for readers.
        about: a sentence or two.
        methods: what `methods.toml` says of each, by the method's name.
    """

    name: str
    title: str
    about: str
    methods: Mapping[str, Mapping[str, Any]]


class PublicName(NamedTuple):
    """A name that a namespace lists in `__all__`.

    Attributes:
        namespace: the module's full name.
        name: the name in that module.
        value: what it stands for.
        page: path of its page in docs/, without a suffix.
    """

    namespace: str
    name: str
    value: Any
    page: str

    @property
    def full(self) -> str:
        """The name as a reader imports it."""
        return f'{self.namespace}.{self.name}'


def families() -> list[Family]:
    """The families of methods.toml, in its order."""
    tables = tomllib.loads(TABLE.read_text(encoding='utf-8'))
    return [
        Family(name, table['title'], table['about'], table['methods'])
        for name, table in tables.items()
    ]


def functions_of_methods() -> dict[str, Callable[..., Any]]:
    """The public functions that stand in a file of `peftjax.methods`, by name."""
    public = {name: getattr(peftjax, name) for name in peftjax.__all__}
    return {
        name: value
        for name, value in public.items()
        if inspect.isfunction(value) and value.__module__.startswith('peftjax.methods.')
    }


def methods() -> dict[str, Callable[..., Any]]:
    """The methods: public functions of `peftjax.methods` that return a transform."""
    return {
        name: value
        for name, value in functions_of_methods().items()
        if inspect.signature(value).return_annotation in (PeftTransform, 'PeftTransform')
    }


def helpers() -> dict[str, Callable[..., Any]]:
    """The other public functions of `peftjax.methods`, which stand beside a method."""
    makes = methods()
    return {name: value for name, value in functions_of_methods().items() if name not in makes}


def namespaces() -> list[str]:
    """The packages with an `__all__`, `peftjax` first, and the modules of `BESIDE`."""
    below = pkgutil.iter_modules(peftjax.__path__, 'peftjax.')
    names = [info.name for info in below if info.ispkg]
    with_names = [name for name in names if hasattr(importlib.import_module(name), '__all__')]
    return ['peftjax', *sorted(with_names), *BESIDE]


def names_of(namespace: str) -> tuple[str, ...]:
    """The public names of a namespace."""
    module = importlib.import_module(namespace)
    return tuple(getattr(module, '__all__', BESIDE.get(namespace, ())))


def public_names() -> list[PublicName]:
    """Every public name of every namespace; a namespace inside another one does not count."""
    makes = methods()
    found = []
    for namespace in namespaces():
        module = importlib.import_module(namespace)
        for name in sorted(names_of(namespace), key=str.lower):
            value = getattr(module, name)
            if inspect.ismodule(value):
                continue
            folder = 'methods' if value in makes.values() and namespace == 'peftjax' else None
            page = f'methods/{name}' if folder else f'reference/{_file(namespace, name)}'
            found.append(PublicName(namespace, name, value, page))
    return found


def _file(namespace: str, name: str) -> str:
    """A file name that differs from all others on file systems without case, too."""
    same = [other for other in names_of(namespace) if other.lower() == name.lower()]
    return f'{namespace}.{name}' + ('-type' if len(same) > 1 and name != name.lower() else '')


def docstring(value: Any) -> str:
    """The docstring of a function or a class.

    Raises:
        ValueError: there is none.
    """
    text = inspect.getdoc(value)
    if text is None:
        raise ValueError(f'{value} has no docstring')
    return text


def summary_of(value: Any) -> str:
    """The first line of a docstring."""
    return docstring(value).partition('\n')[0]


def defined_in(namespace: str, name: str) -> str:
    """The module that a namespace imports one of its public names from."""
    late = getattr(importlib.import_module(namespace), '_LATE', {})
    if name in late:
        return late[name]
    source = inspect.getsource(importlib.import_module(namespace))
    imports = re.findall(r'^\s*from (\S+) import (\([^)]*\)|[^\n]*)', source, re.MULTILINE)
    for module, names in imports:
        if name in re.findall(r'\w+', names):
            return module
    return namespace
