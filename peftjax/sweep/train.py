"""Trains a group of runs in one program, each into its own work folder."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.sweep.groups import Group
from peftjax.sweep.program import Together
from peftjax.sweep.pruning import Prune, Rung
from peftjax.train import share
from peftjax.train.artifacts import Artifacts, steps_taken
from peftjax.train.checkpoints import Checkpoints
from peftjax.train.data_marks import data_marks
from peftjax.train.fingerprint import fingerprint
from peftjax.train.hooks import Tell
from peftjax.train.interrupt import requests_to_stop
from peftjax.train.loop import Loop
from peftjax.train.member import Member
from peftjax.train.owner import owned
from peftjax.train.redo import go_back
from peftjax.train.task import Beside
from peftjax.train.trackers.registry import trackers_of


def train_group(group: Group, folder: Path, runs_folder: Path, prune: Prune, tell: Tell) -> None:
    """Trains every run of a group to its end, from the group's newest checkpoint if there is one.

    The results of a run appear in `runs_folder/<name>` when they are complete, with the same files
    as for a single run. A run whose loss becomes NaN or infinite is dropped, and so is a run that
    is stopped; its result holds the values so far.

    Args:
        group: of `sweep.groups.group`.
        folder: for checkpoints of the group.
        runs_folder: for the folders of the runs.
        prune: which runs stop, each time that runs were scored on the validation split.
        tell: gets the progress of each run.

    Raises:
        Interrupted: SIGTERM came; the state of the group was saved.
        CheckpointsError: a checkpoint could not be written, or none of those there is whole.
        ValueError: the folder holds a group with other runs, on another base or on other data;
            another process works in the folder of a run.
    """
    members = members_of(group, runs_folder)
    over = {
        place: steps
        for place, member in enumerate(members)
        if (steps := steps_taken(runs_folder / member.name)) is not None
    }
    if len(over) == len(members):
        return
    engine = Together(
        group.rows, [member.state for member in members], [member.beside for member in members]
    )
    about = {
        'model': members[0].run.description['model'],
        'rows': [member.run.description for member in members],
    }
    bases = share([(member.run.model.params, member.beside) for member in members])[0]
    with ExitStack() as stack:
        for member in members:
            stack.enter_context(owned(runs_folder / member.name))
        checkpoints = Checkpoints(
            folder,
            about,
            fingerprint(bases),
            data=_marks(members),
            say=lambda text: tell(members[0].name, {'note': text}),
        )
        stack.callback(checkpoints.close)
        rest = [member for place, member in enumerate(members) if place not in over]
        go_back(checkpoints, rest, lambda text: tell(rest[0].name, {'note': text}))
        loop = Loop(
            members,
            engine,
            checkpoints,
            ending=Artifacts(together=len(members)),
            tell=tell,
            over=over,
            prune=_Rungs(prune, len(members)),
        )
        stack.enter_context(closing(loop))
        loop.run(stack.enter_context(requests_to_stop()))


def _marks(members: Sequence[Member]) -> dict[str, str]:
    """Digests of the data that the runs read beside their bases, once for each task."""
    known: dict[int, dict[str, str]] = {}
    found: dict[str, str] = {}
    for member in members:
        task = id(member.run.task)
        known[task] = known.get(task) or data_marks(member.run)
        found |= {f'{what} (run {member.name})': mark for what, mark in known[task].items()}
    return found


class _Rungs:
    """Asks a pruner of the sweep, as the loop asks."""

    def __init__(self, prune: Prune, of: int):
        self._prune, self._of = prune, of

    def __call__(
        self, step: int, number: int, members: Sequence[Member], rivals: Sequence[Member]
    ) -> Collection[str]:
        del members
        scores = {member.name: member.scores for member in rivals}
        return self._prune(Rung(step, number, self._of, scores))


def members_of(group: Group, runs_folder: Path) -> list[Member]:
    """The runs of a group. Frozen arrays that are equal in several runs are held once."""
    members: list[Member] = []
    for ready in group.rows:
        folder = runs_folder / ready.row.name
        trackers = trackers_of(ready.row.settings.trackers)
        member = Member(ready.run, folder, trackers, ready.row.name)
        if members:
            member.beside = _sharing(member.beside, members[0].beside)
        members.append(member)
    return members


def _sharing(beside: Beside, first: Beside) -> Beside:
    """`beside` with the arrays of the first run where they have the same values."""
    leaves, _ = jax.tree.flatten_with_path(first)
    held = dict(leaves)

    def one(path: Any, own: jax.Array) -> jax.Array:
        other = held.get(path, own)  # A rate of dropout may be missing.
        if own is other or own.shape != other.shape:
            return own
        return other if bool(jnp.array_equal(own, other)) else own

    return jax.tree.map_with_path(one, beside)
