"""A method with its arguments, as it is written on a command line."""

import ast
import re
from typing import Any

from peftjax.train.typed import SettingsError

_CALL = re.compile(r'\s*[A-Za-z_]\w*\s*(\(.*\))?\s*', re.DOTALL)


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """A method with its arguments: `lora`, or `lora(rank=8, targets='all-linear')`.

    Raises:
        SettingsError: the text is not a method's name, or its arguments are not plain values.

    Example:
        >>> read_call("lora(rank=8, targets=['query', 'value'])")
        ('lora', {'rank': 8, 'targets': ['query', 'value']})
    """
    try:
        if _CALL.fullmatch(text) is None:
            raise ValueError('no call')
        tree = ast.parse(text.strip(), mode='eval').body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
            raise ValueError('no call')
        return tree.func.id, {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise SettingsError(
            f'{text!r} does not read as a method; write for example '
            "lora or lora(rank=8, targets='all-linear')"
        ) from error
