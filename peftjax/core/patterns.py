"""Regular expressions on paths, matched in linear time if possible."""

import functools
import re
from typing import Any

# Without RE2, the patterns of a user's program still run with `re`; patterns from files are
# refused.
try:
    import re2
except ImportError:
    re2 = None

# Syntax that both engines accept but read differently: `{,n}` and POSIX classes.
_DIFFERENT = '{,', '[:'


class Matcher:
    """A regular expression of Python's `re`, matched as a whole.

    RE2 runs it without backtracking if RE2 has the syntax. Otherwise (look-ahead, references to
    groups) `re` runs it, and there are patterns for which it never finishes.

    Attributes:
        text: the pattern. linear: whether RE2 runs it.
    """

    def __init__(self, text: str):
        """Compiles a pattern.

        Raises:
            re.error: it is none.
        """
        self.text = text
        self._backtracking = re.compile(text)
        self._linear = _linear(text)

    @property
    def linear(self) -> bool:
        return self._linear is not None

    def fullmatch(self, path: str) -> bool:
        """Whether it matches all of `path`."""
        # The two engines disagree on letters beyond ASCII.
        if self._linear is None or not path.isascii():
            return self._backtracking.fullmatch(path) is not None
        return self._linear.fullmatch(path) is not None


@functools.lru_cache(maxsize=4096)
def matcher(text: str) -> Matcher:
    """The matcher of a pattern.

    Raises:
        re.error: it is none.

    Example:
        >>> matcher(r'.*/(query|value)').fullmatch('layers/attention/query')
        True
        >>> matcher(r'(.|.)*!').linear, matcher(r'(?!a).*').linear
        (True, False)
    """
    return Matcher(text)


def _linear(text: str) -> Any:
    """The pattern for RE2; None if RE2 is not installed or lacks the syntax."""
    if re2 is None or not text.isascii() or any(each in text for each in _DIFFERENT):
        return None
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(text, options)
    except re2.error:
        return None
