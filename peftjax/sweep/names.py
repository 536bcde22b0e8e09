"""The names of runs and settings of a sweep in texts for people."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]

SEED = 'config.seed'
METHODS = 'config.methods'


def show(value: Any) -> str:
    """A short text for a value that a run changes; random rates have many digits.

    Example:
        >>> show(0.00123456789), show(3), show(['lora', 'select']), show({'lora': 0.1}), show(None)
        ('0.001235', '3', 'lora + select', 'lora=0.1', 'none')
    """
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, Mapping):
        return ', '.join(f'{name}={show(each)}' for name, each in value.items()) or 'none'
    if isinstance(value, list | tuple):
        apart = ' + ' if all(isinstance(each, str) for each in value) else ', '
        return apart.join(map(show, value)) or 'none'
    return 'none' if value is None else str(value)


def short(field: str) -> str:
    """A column of the results as a field of the config: `config.lora.rank` is `lora.rank`."""
    return field.removeprefix('config.')


def changes_text(changes: Mapping[str, Any]) -> str:
    """The changes of a run or a setting on one line: the methods first, by their names only.

    Example:
        >>> changes_text({'lr': 1e-3, 'methods': ['lora', 'select'], 'seed': 1})
        'lora + select · lr=0.001 · seed=1'
    """
    methods = [show(changes['methods'])] if 'methods' in changes else []
    rest = [f'{name}={show(value)}' for name, value in changes.items() if name != 'methods']
    return ' · '.join(methods + rest)


def setting_names(lines: Sequence[Line], fields: Sequence[str]) -> list[str]:
    """The name of each line's setting: all of its changes except the seed.

    Lines have the same name exactly if they have the same values. If four digits do not distinguish
    two settings, their names have all digits.

    Args:
        lines: of `SweepFolder.results`.
        fields: its columns that hold what runs change, `config.*`.

    Example:
        >>> lines = [{'config.lr': 0.1, 'config.seed': seed} for seed in range(2)]
        >>> setting_names(lines, ['config.lr', 'config.seed'])
        ['lr=0.1', 'lr=0.1']
        >>> setting_names([{'config.lr': 0.10001}, {'config.lr': 0.10002}], ['config.lr'])
        ['lr=0.10001', 'lr=0.10002']
    """
    settings = [{f: line[f] for f in fields if f != SEED and f in line} for line in lines]
    keys = [json.dumps(each, sort_keys=True) for each in settings]
    names = [changes_text(_by_field(each)) or 'as configured' for each in settings]
    owners: dict[str, set[str]] = {}
    for key, name in zip(keys, names, strict=True):
        owners.setdefault(name, set()).add(key)
    return [
        name if len(owners[name]) == 1 else _in_full(each)
        for name, each in zip(names, settings, strict=True)
    ]


def _by_field(setting: Line) -> dict[str, Any]:
    return {short(name): value for name, value in setting.items()}


def _in_full(setting: Line) -> str:
    return ' · '.join(f'{short(name)}={json.dumps(value)}' for name, value in setting.items())


def legend(lines: Sequence[Line], fields: Sequence[str]) -> tuple[str, list[str]]:
    """The meaning of the colours of a chart: a title, and the label of each line.

    Methods, if they differ; otherwise the first field with few values.

    Example:
        >>> lines = [{'method': name, 'config.lr': 0.1} for name in ('lora', 'ia3')]
        >>> legend(lines, ['config.lr'])
        ('method', ['lora', 'ia3'])
        >>> legend([{'method': 'lora', 'config.lr': rate} for rate in (1.0, 2.0)], ['config.lr'])
        ('lr', ['1', '2'])
    """
    methods = [str(line['method']) for line in lines]
    if len(set(methods)) < 2:
        for field in fields:
            values = [show(line[field]) if field in line else 'not set' for line in lines]
            if field != SEED and 1 < len(set(values)) <= 8:
                return short(field), values
    return 'method', methods
