"""The functions that the training loop calls: for progress, for early stops, and at the end."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from peftjax.train.member import Member
from peftjax.train.step import TrainState

Tell = Callable[[str, Mapping[str, Any]], None]
"""`tell(run, {'step': 20, 'status': 'training', ...})` reports the progress of a run."""

OnStep = Callable[[int, Mapping[str, Any]], None]
"""`on_step(step, metrics)` after every step; metrics are arrays on the device."""


class Prune(Protocol):
    """Chooses the runs that stop after they were scored."""

    def __call__(
        self, step: int, number: int, members: Sequence[Member], rivals: Sequence[Member], /
    ) -> Collection[str]: ...


class Ending(Protocol):
    """Called with a run that is over, its last state and step, and its status and scores."""

    def __call__(
        self, member: Member, state: TrainState, step: int, known: Mapping[str, Any], /
    ) -> None: ...
