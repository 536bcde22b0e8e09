"""Every setting of a run as a flag, with name, type and help from the dataclasses."""

import ast
import dataclasses
import difflib
import functools
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import peftjax
from peftjax.train.method_calls import read_call
from peftjax.train.settings import Settings, SettingsError

METHOD = (
    'a method with its arguments, such as "lora(rank=8, targets=\'all-linear\')"; give it again to '
    'chain methods. Replaces the methods of the config'
)
_WORDS = {'true': True, 'false': False, 'none': None, 'null': None}
_METAVARS: Mapping[Any, str] = {str: 'TEXT', bool: 'BOOL', int: 'N', float: 'X', tuple: 'A,B'}
_EXAMPLES: Mapping[Any, str] = {int: '4', float: '1e-3', bool: 'true'}


class Flag(NamedTuple):
    """A setting as a flag.

    Attributes:
        kind: its type.
        default: its value in a run without a config.
        help: its meaning and its default.
        metavar: the placeholder for its value in the help.
    """

    kind: Any
    default: Any
    help: str
    metavar: str


class Taken(NamedTuple):
    """A command line, split into settings and the rest.

    Attributes:
        left: the rest.
        changes: values of settings by dotted name.
        methods: each with its arguments.
    """

    left: list[str]
    changes: dict[str, Any]
    methods: list[tuple[str, dict[str, Any]]]


@functools.cache
def flags_of(group: str) -> Mapping[str, Flag]:
    """The settings of a group by dotted name: 'model', 'data', 'mesh', or 'run' for all others.

    Example:
        >>> flags_of('mesh')['mesh.fsdp'].default
        1
    """
    kinds = typing.get_type_hints(Settings)
    if group == 'run':
        whole = dict(_flags(Settings, ''))
        return {name: flag for name, flag in whole.items() if name != 'sections'}
    return dict(_flags(kinds[group], f'{group}.'))


def take(
    argv: Sequence[str], known: Mapping[str, Flag], *, sections: bool, chained: bool = False
) -> Taken:
    """Takes the settings out of a command line.

    Args:
        argv: the command line.
        known: the settings to take, by dotted name.
        sections: whether to take any other dotted name too, as an argument of a function.
        chained: whether to take `--method`, as a part of the run's chain.

    Raises:
        SettingsError: a setting has no value, or its value is not of its type.

    Example:
        >>> line = ['--mesh.fsdp', '8', '--lora.targets', 'q,v', '--workdir', 'runs/a']
        >>> taken = take(line, flags_of('mesh'), sections=True)
        >>> taken.left, taken.changes
        (['--workdir', 'runs/a'], {'mesh.fsdp': 8, 'lora.targets': ['q', 'v']})
    """
    taken = Taken([], {}, [])
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if token == '--':
            taken.left.extend([token, *tokens])
            break
        name, equals, value = token.removeprefix('--').partition('=')
        name = name.replace('-', '_')
        inside = _holder(name, known)
        is_method = chained and name == 'method'
        if not token.startswith('--') or not (
            name in known or inside or is_method or (sections and '.' in name)
        ):
            taken.left.append(token)
            continue
        if not equals:
            value = _next(name, tokens, known, plain=name not in known and not is_method)
        if is_method:
            taken.methods.append(read_call(value))
        elif name in known:
            taken.changes[name] = _read(known[name].kind, value, name)
        else:
            kind = typing.get_args(known[inside].kind)[-1] if inside else None
            taken.changes[name] = _inner(kind, value, name)
    return taken


def changed(
    start: Settings, changes: Mapping[str, Any], methods: Sequence[tuple[str, Mapping[str, Any]]]
) -> Settings:
    """Settings with some changes; `methods`, unless empty, replace the methods of `start`.

    Raises:
        SettingsError: a setting or an argument is unknown, or a value has another type.

    Example:
        >>> made = changed(Settings(), {'lr': 0.1, 'lora.alpha': 4}, [('lora', {'rank': 2})])
        >>> made.lr, made.section('lora')
        (0.1, {'rank': 2, 'alpha': 4})
    """
    made = start
    if methods:
        chosen = _known(tuple(name for name, _ in methods))
        kept = {n: v for n, v in start.sections.items() if n in chosen or n not in start.methods}
        given = {name: dict(arguments) for name, arguments in methods if arguments}
        made = dataclasses.replace(start, methods=chosen, sections={**kept, **given})
    made = made.change(changes)
    for method in _known(made.methods):
        _check_numbers(method, made)
    return made


def _known(chosen: tuple[str, ...]) -> tuple[str, ...]:
    """`chosen`, if all are names of methods; raises `SettingsError` with near names if not."""
    for name in chosen:
        if name not in _methods():
            close = difflib.get_close_matches(name, _methods(), n=3, cutoff=0)
            raise SettingsError(f'no method {name!r}; near names: {", ".join(close)}')
    return chosen


def _check_numbers(method: str, settings: Settings) -> None:
    """Raises `SettingsError` for a text where a method takes a number."""
    takes = inspect.signature(getattr(peftjax, method)).parameters
    for name, value in settings.section(method).items():
        kinds = set(typing.get_args(takes[name].annotation) or (takes[name].annotation,))
        if isinstance(value, str) and kinds <= {int, float, bool, types.NoneType}:
            raise SettingsError(f'--{method}.{name} does not take {value!r}; write a number')


@functools.cache
def _methods() -> tuple[str, ...]:
    """Names of the functions that make methods."""
    where = {name: getattr(vars(peftjax).get(name), '__module__', '') for name in peftjax.__all__}
    return tuple(name for name, module in where.items() if module.startswith('peftjax.methods.'))


def plain(text: str) -> Any:
    """A value without a known type: a Python literal, true, false or none, a list of names, text.

    Example:
        >>> plain('1e-3'), plain('True'), plain('q_proj,v_proj'), plain('layers/.*/query')
        (0.001, True, ['q_proj', 'v_proj'], 'layers/.*/query')
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text.split(',') if re.fullmatch(r'\w+(,\w+)+', text) else text
    return list(value) if isinstance(value, tuple) else value


def _flags(kind: Any, prefix: str) -> Iterator[tuple[str, Flag]]:
    """The plain settings of one dataclass."""
    kinds, said = typing.get_type_hints(kind), _attributes(kind)
    for field in dataclasses.fields(kind):
        inner = kinds[field.name]
        if dataclasses.is_dataclass(inner):
            continue
        default: Any = getattr(kind(), field.name)
        text = f'{said.get(field.name, "")} ({_default(default)})'.replace('%', '%%')
        yield prefix + field.name, Flag(inner, default, text, _metavar(inner))


def _attributes(kind: type) -> dict[str, str]:
    """The description of each attribute in the docstring."""
    _, _, text = inspect.cleandoc(kind.__doc__ or '').partition('Attributes:\n')
    found: dict[str, str] = {}
    name = ''
    for line in text.splitlines():
        begun = re.match(r' {4}(\w+): (.*)', line)
        if begun:
            name = begun[1]
            found[name] = begun[2]
        elif name and line.startswith(' ' * 8):
            found[name] += ' ' + line.strip()
    return found


def _default(value: Any) -> str:
    if isinstance(value, str):
        return value or 'none'
    if isinstance(value, tuple | Mapping) or value is None:
        return ','.join(map(str, value or ())) or 'none'
    return json.dumps(value)


def _metavar(kind: Any) -> str:
    kind = _without_none(kind)
    return _METAVARS.get(typing.get_origin(kind) or kind, 'NAME=VALUE,..')


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(each for each in typing.get_args(kind) if each is not types.NoneType)
    return kind


def _holder(name: str, known: Mapping[str, Flag]) -> str:
    """The mapping-valued setting that a dotted name is a key of; '' if there is none."""
    above = name.rpartition('.')[0]
    while above and above not in known:
        above = above.rpartition('.')[0]
    held = above and typing.get_origin(known[above].kind) is Mapping
    return above if held else ''


def _next(name: str, tokens: list[str], known: Mapping[str, Flag], *, plain: bool) -> str:
    """Takes the value of a setting off the tokens that follow it."""
    if tokens and not tokens[0].startswith('--'):
        return tokens.pop(0)
    if plain or (name in known and known[name].kind is bool):
        return 'true'
    example = _EXAMPLES.get(_without_none(known[name].kind), 'TEXT') if name in known else 'lora'
    raise SettingsError(f'--{name} needs a value, for example --{name} {example}')


def _read(kind: Any, text: str, name: str) -> Any:
    """The value of a setting."""
    bare = _without_none(kind)
    if bare is not kind and text.lower() in ('none', 'null'):
        return None
    origin, inner = typing.get_origin(bare), typing.get_args(bare)
    try:
        if origin is tuple:
            return [_read(inner[0], each, name) for each in _several(text)]
        if origin is not None:
            return _mapping(text, inner[1], name)
        if bare is bool:
            return {'true': True, 'false': False}[text.lower()]
        value = bare(text)
    except (KeyError, ValueError, SyntaxError) as error:
        if isinstance(error, SettingsError):
            raise
        example = _EXAMPLES.get(bare, '')
        raise SettingsError(
            f'--{name} does not take {text!r}; write for example --{name} {example}'
        ) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f'--{name} is {text}; it must be a finite number')
    return value


def _several(text: str) -> list[str]:
    """The parts of a list: a,b or ["a", "b"]."""
    if text[:1] in ('[', '('):
        return [each if isinstance(each, str) else json.dumps(each) for each in plain(text)]
    return [each.strip() for each in text.split(',') if each.strip()]


def _mapping(text: str, kind: Any, name: str) -> dict[str, Any]:
    """Names and values: a=b,c=d or {"a": "b"}."""
    if isinstance(value := plain(text), dict):
        return value
    pairs = [each.partition('=') for each in text.split(',') if each.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise SettingsError(f'--{name} does not take {text!r}; write --{name} name=value')
    return {n.strip(): _inner(kind, v.strip(), f'{name}.{n.strip()}') for n, _, v in pairs}


def _inner(kind: Any, text: str, name: str) -> Any:
    """A value in a mapping-valued setting."""
    return _read(kind, text, name) if kind in (str, float) else plain(text)
