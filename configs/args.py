"""The string after a config's colon: `configs/lora_sentiment.py:full,rank=4`.

It is for choices that change several fields at once. A single field has a flag, `--lr 1e-3`.
"""

from ml_collections import ConfigDict

_WORDS_FOR_BOOL = {'true': True, 'false': False}


def parse_arg(arg: str | None, **defaults: bool | int | float | str) -> ConfigDict:
    """Reads `name=value` pairs and bare names (booleans set to true) separated by commas.

    Args:
        arg: the string, or None or '' for the defaults.
        **defaults: every name that may occur, with its default; its type is the value's type.

    Returns:
        A locked ConfigDict with one field for each default.

    Raises:
        ValueError: a name is unknown or given twice, or a value does not read as its type.

    Example:
        >>> parse_arg('full,rank=4', full=False, rank=8).to_dict()
        {'full': True, 'rank': 4}
    """
    values = dict(defaults)
    given = set()
    for item in filter(None, (part.strip() for part in (arg or '').split(','))):
        name, has_value, text = item.partition('=')
        if name not in defaults:
            raise ValueError(f'unknown config argument {name!r}; known: {", ".join(defaults)}')
        if name in given:
            raise ValueError(f'config argument {name!r} is given twice')
        given.add(name)
        values[name] = _read(name, text if has_value else 'true', defaults[name])
    return ConfigDict(values).lock()


def _read(name: str, text: str, default: bool | int | float | str) -> bool | int | float | str:
    kind = type(default)
    try:
        return _WORDS_FOR_BOOL[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(
            f'config argument {name}={text} does not read as {kind.__name__}; '
            f'write for example {name}={default}'
        ) from None
