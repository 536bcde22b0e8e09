"""Trains a group of rows in one program, each into a work folder of its own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.sweep.groups import Group
from peftjax.sweep.member import Member, members_of
from peftjax.sweep.program import Together
from peftjax.sweep.pruning import Prune, Rung
from peftjax.sweep.result import finish, steps_taken, write_result
from peftjax.sweep.window import RowWindow
from peftjax.train.cadence import is_due, steps
from peftjax.train.checkpoints import Checkpoints
from peftjax.train.data import batches as data
from peftjax.train.fingerprint import fingerprint
from peftjax.train.interrupt import Interrupted, requests_to_stop
from peftjax.train.step import TrainState

Tell = Callable[[str, Mapping[str, Any]], None]
"""`tell(row, {'step': 20, 'status': 'training', ...})`, for whoever watches."""


def train_group(group: Group, folder: Path, rows_folder: Path, prune: Prune, tell: Tell) -> None:
    """Trains every row of a group to its end, from the group's newest checkpoint if there is one.

    A row has its results when they are written whole, into `rows_folder/<name>`: config.json,
    metrics.jsonl, tensorboard/, checkpoints/ and result.json, as a run of its own writes them. A
    row whose loss becomes NaN or infinite is dropped, and so is one that is stopped; its result is
    what is known of it so far.

    Args:
        group: of `sweeps.groups.group`.
        folder: for checkpoints of the group.
        rows_folder: for the folders of the rows.
        prune: which rows stop, each time that rows were scored on the validation split.
        tell: is told of each row's progress.

    Raises:
        Interrupted: SIGTERM came; the state of the group was saved.
        CheckpointsError: a checkpoint could not be written, or none of those there is whole.
        ValueError: the folder holds a group with other rows or on another base.
    """
    trainer = _Trainer(group, folder, rows_folder, prune, tell)
    with ExitStack() as stack:
        stack.enter_context(closing(trainer))
        stopped = stack.enter_context(requests_to_stop())
        trainer.run(stopped)


class _Trainer:
    def __init__(self, group: Group, folder: Path, rows_folder: Path, prune: Prune, tell: Tell):
        self.prune, self.tell = prune, tell
        self.members = members_of(group, rows_folder)
        self.first = self.members[0]
        self.seeds = sorted({member.config.seed for member in self.members})
        self.batches = data.train_batches_of_seeds(
            self.first.run.task.splits['train'],
            batch_size=self.first.config.data.batch_size,
            lengths=self.first.config.data.lengths,
            seeds=self.seeds,
            steps=max(member.run.steps for member in self.members),
        )
        about = {
            'model': self.first.resolved['model'],
            'rows': [member.resolved for member in self.members],
        }
        bases = fingerprint(peftjax.train.share([member.base for member in self.members])[0])
        self.checkpoints = Checkpoints(folder, about, bases)
        # The state of every row, also of those that left.
        self.states = peftjax.train.stack([member.state for member in self.members])
        # Those in the program, and those that are over, with the step each left after: they are
        # computed on until half of the program is theirs, as a smaller one would have to be
        # compiled.
        self.inside = list(range(len(self.members)))
        self.left: dict[int, int] = {}
        self.done = 0
        if self.checkpoints.latest_step is not None:
            self._restore()
        # Finished rows stay finished even if the group resumes from an earlier step. They are still
        # computed up to the step where they ended, so that the other rows remain bit-identical.
        for i, member in enumerate(self.members):
            taken = steps_taken(member.folder)
            if taken is None:
                member.open(self.done)
            else:
                self.left[i] = taken

    def run(self, stopped: Callable[[], bool]) -> None:
        """All steps that are left."""
        if len(self.left) == len(self.members):
            return
        program = self._program()
        window, config = RowWindow(len(self.inside)), self.first.config
        every = [
            steps(
                each,
                steps_per_epoch=self.first.run.steps_per_epoch,
                batch_size=config.data.batch_size,
            )
            for each in (config.log_every, config.eval_every, config.save_every)
        ]
        for number, part in enumerate(self.batches, start=self.done + 1):
            window.add(number, program.step(part.rows), program.of_rows(part.tokens))
            stop = stopped()
            due = {
                place: [stop] + [is_due(number, every=n, last=member.run.steps) for n in every]
                for place, member in self._here()
            }
            if not any(map(any, due.values())) and number not in self.left.values():
                continue
            # A row is read before it is saved: reading it is what finds a NaN.
            read = [place for place, reasons in due.items() if any(reasons)]
            bad = {place: self._log(number, place, window) for place in read}
            scored = [p for p in read if due[p][2] and bad[p] is None]
            self._evaluate(number, program, scored)
            self._keep(program.states())
            ends = [p for p in read if self._at(p).run.steps == number and bad[p] is None]
            self._finish(number, program, ends)
            for place in read:
                at = bad[place]
                if at is not None:
                    self._give_up(number, place, at)
            rivals = [p for p in scored if p not in ends]
            pruned = self._prune(number, number // every[1], rivals)
            gone = [p for p in read if p in ends or p in pruned or bad[p] is not None]
            program.leave(gone)
            self.left.update({self.inside[p]: number for p in gone})
            remaining = [row for row in self.inside if row not in self.left]
            stay = [row for row in self.inside if self.left.get(row, number + 1) > number]
            if remaining and 2 * len(stay) <= len(self.inside):
                window.keep([self.inside.index(row) for row in stay])
                self.inside = stay
                program = self._program()
            if stop or any(reasons[3] for reasons in due.values()) or not remaining:
                self._save(number)
            window.go_on([place for place, _ in self._here()])
            if not remaining:
                return
            if stop:
                self.checkpoints.wait()
                raise Interrupted(f'step {number}')

    def _program(self) -> Together:
        members = [self.members[i] for i in self.inside]
        # As wide as the widest of those that are left.
        own = [peftjax.train.row(self.states, i, self.members[i].state) for i in self.inside]
        program = Together(
            [member.ready for member in members],
            [member.frozen for member in members],
            peftjax.train.stack(own),
            self.seeds,
        )
        program.leave([place for place, row in enumerate(self.inside) if row in self.left])
        return program

    def _keep(self, states: TrainState) -> None:
        """Takes the states of the rows in the program; what lies beyond their widest is zero."""
        inside = np.asarray(self.inside)

        def put(whole: jax.Array, part: jax.Array) -> jax.Array:
            return whole.at[(inside, *map(slice, part.shape[1:]))].set(part)

        self.states = jax.tree.map(put, self.states, states)

    def _at(self, place: int) -> Member:
        return self.members[self.inside[place]]

    def _here(self) -> list[tuple[int, Member]]:
        """The rows that train, by their places in the program."""
        return [
            (place, self.members[row])
            for place, row in enumerate(self.inside)
            if row not in self.left
        ]

    def _log(self, number: int, place: int, window: RowWindow) -> int | None:
        """Writes a row's means; the first step that is not finite, if one is not."""
        member = self._at(place)
        means, bad = window.read(place)
        if bad is None:
            member.write(number, {f'train/{name}': value for name, value in means.items()})
            told = {'status': 'training', 'step': number, 'loss': means['loss']}
            self.tell(member.name, told)
        return bad

    def _evaluate(self, number: int, program: Together, places: Sequence[int]) -> None:
        found = program.evaluate('validation') if places else []
        for place in places:
            member = self._at(place)
            member.scores = found[place]
            member.write(number, member.scores)
            self.tell(member.name, member.scores)

    def _prune(self, number: int, evaluation: int, places: Sequence[int]) -> list[int]:
        """Stops some of the rows that were just scored; gives their places."""
        if not places:
            return []
        scores = {self._at(place).name: self._at(place).scores for place in places}
        names = self.prune(Rung(number, evaluation, len(self.members), scores))
        pruned = [place for place in places if self._at(place).name in names]
        for place in pruned:
            member = self._at(place)
            known = {'status': 'pruned', **member.scores}
            write_result(member, number, len(self.members), known)
            self.tell(member.name, {'status': 'pruned', 'step': number})
        return pruned

    def _give_up(self, number: int, place: int, at: int) -> None:
        member = self._at(place)
        known = {'status': 'diverged', 'diverged_at': at}
        write_result(member, number, len(self.members), known)
        self.tell(member.name, {'status': 'diverged', 'step': at})

    def _finish(self, number: int, program: Together, places: Sequence[int]) -> None:
        """Tests rows that are at their end, and writes what is left of them."""
        found = program.evaluate('test') if places else []
        for place in places:
            member, test = self._at(place), found[place]
            member.write(number, test)
            own = peftjax.train.row(self.states, self.inside[place], member.state)
            finish(member, own, number, len(self.members), test)
            self.tell(member.name, {'status': 'done', 'step': number, **test})

    def _save(self, number: int) -> None:
        position = {
            'data': self.batches.get_state(),
            'inside': self.inside,
            'scores': [member.scores for member in self.members],
        }
        self.checkpoints.save(_wrapped(self.states, number), position, {})

    def _restore(self) -> None:
        restored = self.checkpoints.restore(_wrapped(self.states, 0))
        self.done, position = int(restored.state.step), restored.data
        raw = restored.state.adapter
        self.states = raw._replace(key=jax.random.wrap_key_data(raw.key))
        self.inside = position['inside']
        self.batches.set_state(position['data'])
        for member, scores in zip(self.members, position['scores'], strict=True):
            member.scores = scores

    def close(self) -> None:
        """Closes files and checkpoints."""
        for member in self.members:
            member.close()
        self.checkpoints.close()


def _wrapped(states: TrainState, number: int) -> TrainState:
    """The states of all rows as one state to be saved."""
    raw = states._replace(key=jax.random.key_data(states.key))
    return TrainState(jnp.asarray(number, jnp.int32), jax.random.key(0), raw, ())
