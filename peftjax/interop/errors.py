"""The error of a checkpoint that cannot be used."""

import re

_MOST = 20_000
# Control characters except tabs and line ends, marks that turn the direction of text, and halves
# of characters.
_UNSEEN = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)


def readable(text: str) -> str:
    """Makes untrusted text safe for people and terminals: control characters are escaped.

    The middle of a text of more than 20,000 characters is left out.

    Example:
        >>> readable('name \\x1b]0;evil')
        'name \\\\x1b]0;evil'
    """
    if len(text) > _MOST:
        left = len(text) - _MOST
        text = f'{text[: _MOST // 2]} ... {left:,} characters ... {text[-_MOST // 2 :]}'
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


class CheckpointError(ValueError):
    """A checkpoint file is corrupt, or does not hold the tensors that its config asks for."""

    def __init__(self, message: str = ''):
        super().__init__(readable(message))

    def at(self, where: str) -> 'CheckpointError':
        """The same error with the file in front, unless the message names its folder already."""
        folder = where.rpartition('/')[0]
        return self if folder and folder in str(self) else CheckpointError(f'{where}: {self}')
