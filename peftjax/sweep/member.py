"""One row of a group that trains: its parts, its state at the start, and its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import peftjax
from peftjax.sweep.groups import Group, Ready
from peftjax.train.build import start
from peftjax.train.files import write_whole
from peftjax.train.trackers.log import MetricsWriter


class Member:
    """A row, and where it stands."""

    def __init__(self, ready: Ready, folder: Path):
        self.ready, self.folder = ready, folder
        self.name, self.config, self.run = ready.row.name, ready.row.config, ready.run
        self.state, self.frozen = start(self.config, self.run)
        self.resolved = json.loads(self.config.to_json())
        self.summary = peftjax.summary(self.run.transform, self.run.model)
        self.scores: dict[str, float] = {}
        self.writer: MetricsWriter | None = None

    @property
    def base(self) -> tuple[Any, peftjax.Frozen]:
        """What it trains on, for its fingerprint."""
        return self.run.model.params, self.frozen

    def open(self, done: int) -> None:
        """Its folder, without what was written behind the step the group goes on from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.resolved, indent=2) + '\n'
        write_whole(self.folder / 'config.json', text)
        self.writer = MetricsWriter(self.folder, resumed_from=done)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        assert self.writer is not None
        self.writer.write(step, values)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def members_of(group: Group, rows_folder: Path) -> list[Member]:
    """The rows of a group. What is frozen in several of them alike is held once."""
    members: list[Member] = []
    for ready in group.rows:
        member = Member(ready, rows_folder / ready.row.name)
        if members:
            member.frozen = _sharing(member.frozen, members[0].frozen)
        members.append(member)
    return members


def _sharing(frozen: peftjax.Frozen, first: peftjax.Frozen) -> peftjax.Frozen:
    """`frozen` with the arrays of the first row where they have the same values."""
    leaves, _ = jax.tree.flatten_with_path(first)
    held = dict(leaves)

    def one(path: Any, mine: jax.Array) -> jax.Array:
        other = held.get(path, mine)  # A rate of dropout may be missing.
        if mine is other or mine.shape != other.shape:
            return mine
        return other if bool(jnp.array_equal(mine, other)) else mine

    return jax.tree.map_with_path(one, frozen)
