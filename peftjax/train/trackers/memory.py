"""Remembers which numbers a tracker was sent, so that each is sent once."""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjax.train.files import write_whole


class Memory:
    """The identity of a tracker's run, and the last step that each number was sent for.

    It is a file in the work folder, `trackers/<name>.json`. A run that does not resume gets a new
    identity. A run that resumes repeats some steps, and `unsent` leaves their numbers out.

    Attributes:
        resumed: whether the tracker's run is continued.
        id: a text of hexadecimal digits, the same for the whole run.
        noted: values that the tracker keeps here, such as the id that its server gave.

    Args:
        workdir: of the run.
        name: of the tracker.
        resumed_from: the step that the run resumes from; 0 for a new run.
        forgets: whether the tracker drops the numbers of later steps, so that they are sent again.

    Example:
        >>> folder = getfixture('tmp_path')
        >>> first = Memory(folder, 'wandb', 0)
        >>> first.sent(4, {'loss': 0.5})
        >>> again = Memory(folder, 'wandb', 2)
        >>> again.id == first.id, again.unsent(4, {'loss': 0.5}), again.unsent(6, {'loss': 0.4})
        (True, {}, {'loss': 0.4})
    """

    def __init__(self, workdir: Path, name: str, resumed_from: int, *, forgets: bool = False):
        self._path = workdir / 'trackers' / f'{name}.json'
        self.resumed = resumed_from > 0 and self._path.exists()
        kept = json.loads(self._path.read_text(encoding='utf-8')) if self.resumed else {}
        self.id: str = kept.get('id', uuid.uuid4().hex[:12])
        self.noted: dict[str, Any] = kept.get('noted', {})
        last = kept.get('last', {})
        self._last = {
            name: min(step, resumed_from) if forgets else step for name, step in last.items()
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def note(self, **values: Any) -> None:
        """Keeps values of the tracker, which JSON can hold, in `noted`."""
        self.noted = {**self.noted, **values}
        self._write()

    def unsent(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """The values that the tracker was not sent for this step or a later one."""
        return {name: value for name, value in values.items() if self._last.get(name, -1) < step}

    def sent(self, step: int, values: Mapping[str, float]) -> None:
        """Notes that the values of a step were sent."""
        self._last |= dict.fromkeys(values, step)
        self._write()

    def _write(self) -> None:
        kept = {'id': self.id, 'noted': self.noted, 'last': self._last}
        write_whole(self._path, json.dumps(kept, indent=2) + '\n')
