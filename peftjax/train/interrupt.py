"""A request to stop, which arrives as a signal and is answered between two steps."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupted(Exception):
    """The run stopped on request, after a checkpoint."""


@contextlib.contextmanager
def requests_to_stop() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM has come; schedulers send it before the end.

    Python receives signals only in the main thread: in other threads the answer is always False.

    Example:
        >>> import os
        >>> with requests_to_stop() as stopped:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stopped()
        True
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
