"""Trains a group of rows in one program, each into a work folder of its own."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import peftjax
from experiments import data, run_report
from experiments.cadence import is_due, steps
from experiments.checkpoints import Checkpoints
from experiments.files import write_whole
from experiments.fingerprint import fingerprint
from experiments.interrupt import Interrupted, requests_to_stop
from experiments.metrics import MetricsWriter, read_metrics
from experiments.sweep_groups import Group, Ready, side_by_side, start
from peftjax import training
from peftjax.training import TrainState, make_train_step

Tell = Callable[[str, Mapping[str, Any]], None]
"""`tell(row, {'step': 20, 'status': 'training', ...})`, for whoever watches."""

RESULT = 'result.json'


def train_group(group: Group, folder: Path, rows_folder: Path, tell: Tell) -> None:
    """Trains every row of a group to its end, from the group's newest checkpoint if there is one.

    A row has its results when they are written whole, into `rows_folder/<name>`: config.json,
    metrics.jsonl, tensorboard/, checkpoints/ and result.json, as a run of its own writes them. One
    whose loss is no finite number any more leaves, with what is known of it as its result.

    Args:
        group: of `sweep_groups.group`.
        folder: for checkpoints of the group.
        rows_folder: for the folders of the rows.
        tell: is told of each row's progress.

    Raises:
        Interrupted: SIGTERM came; the state of the group was saved.
        CheckpointsError: a checkpoint could not be written, or none of those there is whole.
        ValueError: the folder holds a group with other rows or on another base.
    """
    trainer = _Trainer(group, folder, rows_folder, tell)
    with ExitStack() as stack:
        stack.enter_context(closing(trainer))
        stopped = stack.enter_context(requests_to_stop())
        trainer.run(stopped)


class _Member:
    """A row, and where it stands."""

    def __init__(self, ready: Ready, folder: Path):
        self.ready, self.folder = ready, folder
        self.name, self.config, self.run = ready.row.name, ready.row.config, ready.run
        self.state, self.params = start(self.config, self.run)
        self.resolved = json.loads(self.config.to_json())
        self.summary = peftjax.summary(self.run.transform, self.run.model)
        self.scores: dict[str, float] = {}
        self.writer: MetricsWriter | None = None

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


class _Trainer:
    def __init__(self, group: Group, folder: Path, rows_folder: Path, tell: Tell):
        self.tell = tell
        self.members = [_Member(ready, rows_folder / ready.row.name) for ready in group.rows]
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
        bases = fingerprint(training.share([member.params for member in self.members])[0])
        self.checkpoints = Checkpoints(folder, about, bases)
        # The state of every row, also of those that left.
        self.states = training.stack([member.state for member in self.members])
        # Those in the program, and those of them that left: they are computed on until half of the
        # program is theirs, as a smaller one would have to be compiled.
        self.inside = list(range(len(self.members)))
        self.left: set[int] = set()
        self.done = 0
        if self.checkpoints.latest_step is not None:
            self._restore()
        # A row that was over before the group was stopped stays so, whatever its checkpoint says.
        self.left.update(i for i, m in enumerate(self.members) if (m.folder / RESULT).exists())
        for i, member in enumerate(self.members):
            if i not in self.left:
                member.open(self.done)

    def run(self, stopped: Callable[[], bool]) -> None:
        """All steps that are left."""
        if len(self.left) == len(self.members):
            return
        program = self._program()
        program.leave([place for place, row in enumerate(self.inside) if row in self.left])
        window, config = _Window(len(self.inside)), self.first.config
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
            if not any(map(any, due.values())):
                continue
            # A row is read before it is saved: reading it is what finds a NaN.
            read = [place for place, reasons in due.items() if any(reasons)]
            bad = {place: self._log(number, place, window) for place in read}
            self._evaluate(number, program, [p for p in read if due[p][2] and bad[p] is None])
            inside, states = np.asarray(self.inside), program.states()
            self.states = jax.tree.map(
                lambda whole, part, inside=inside: whole.at[inside].set(part), self.states, states
            )
            ends = [p for p in read if self._at(p).run.steps == number and bad[p] is None]
            self._finish(number, program, ends)
            for place in read:
                at = bad[place]
                if at is not None:
                    self._give_up(place, at)
            gone = [p for p in read if p in ends or bad[p] is not None]
            program.leave(gone)
            self.left.update(self.inside[p] for p in gone)
            remaining = [row for row in self.inside if row not in self.left]
            if remaining and 2 * len(remaining) <= len(self.inside):
                window.keep([self.inside.index(row) for row in remaining])
                self.inside = remaining
                program = self._program()
            if stop or any(reasons[3] for reasons in due.values()) or not remaining:
                self._save(number)
            window.go_on([place for place, _ in self._here()])
            if not remaining:
                return
            if stop:
                self.checkpoints.wait()
                raise Interrupted(f'step {number}')

    def _program(self) -> '_Together':
        inside = np.asarray(self.inside)
        states = jax.tree.map(lambda leaf: leaf[inside], self.states)
        return _Together([self.members[i] for i in self.inside], states, self.seeds)

    def _at(self, place: int) -> _Member:
        return self.members[self.inside[place]]

    def _here(self) -> list[tuple[int, _Member]]:
        """The rows that train, by their places in the program."""
        return [
            (place, self.members[row])
            for place, row in enumerate(self.inside)
            if row not in self.left
        ]

    def _log(self, number: int, place: int, window: '_Window') -> int | None:
        """Writes a row's means; the first step that is not finite, if one is not."""
        member = self._at(place)
        means, bad = window.read(place)
        if bad is None:
            member.write(number, {f'train/{name}': value for name, value in means.items()})
            told = {'status': 'training', 'step': number, 'loss': means['loss']}
            self.tell(member.name, told)
        return bad

    def _evaluate(self, number: int, program: '_Together', places: Sequence[int]) -> None:
        found = program.evaluate('validation') if places else []
        for place in places:
            member = self._at(place)
            member.scores = found[place]
            member.write(number, member.scores)
            self.tell(member.name, member.scores)

    def _give_up(self, place: int, at: int) -> None:
        member = self._at(place)
        self._write_result(member, {'status': 'diverged', 'diverged_at': at})
        self.tell(member.name, {'status': 'diverged', 'step': at})

    def _finish(self, number: int, program: '_Together', places: Sequence[int]) -> None:
        """Tests rows that are at their end, and writes what is left of them."""
        found = program.evaluate('test') if places else []
        for place in places:
            member, test = self._at(place), found[place]
            member.write(number, test)
            own = training.row(self.states, self.inside[place], member.state)
            base = fingerprint(member.params)
            with closing(Checkpoints(member.folder, member.resolved, base)) as checkpoints:
                # Where it is in the data no longer matters.
                checkpoints.save(own, {}, member.scores)
            metrics = read_metrics(member.folder)
            run_report.learning_curve(metrics, member.folder / 'learning_curve.png')
            result = {
                'status': 'done',
                **test,
                **member.scores,
                'steps': member.run.steps,
                'tflop': member.ready.program.flops * member.run.steps / 1e12,
                'steps_per_second': _median(metrics, 'train/steps_per_second'),
                'tokens_per_second': _median(metrics, 'train/tokens_per_second'),
                'peak_memory_mib': run_report.peak_memory_mib(),
            }
            self._write_result(member, result)
            self.tell(member.name, {'status': 'done', 'step': number, **test})

    def _write_result(self, member: _Member, result: Mapping[str, Any]) -> None:
        member.close()
        counts = {'trainable': member.summary.trainable, 'base': member.summary.base}
        text = json.dumps({**result, **counts, 'together': len(self.members)}, indent=2) + '\n'
        write_whole(member.folder / RESULT, text)

    def _save(self, number: int) -> None:
        position = {
            'data': self.batches.get_state(),
            'inside': self.inside,
            'left': sorted(self.left),
            'scores': [member.scores for member in self.members],
        }
        self.checkpoints.save(_wrapped(self.states, number), position, {})

    def _restore(self) -> None:
        restored = self.checkpoints.restore(_wrapped(self.states, 0))
        self.done, position = int(restored.state.step), restored.data
        raw = restored.state.adapter
        self.states = raw._replace(key=jax.random.wrap_key_data(raw.key))
        self.inside, self.left = position['inside'], set(position['left'])
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


class _Together:
    """Rows in one program: their steps and their scores, compiled once for each shape.

    Where not all are computed side by side, parts of them go through it one after another.
    """

    def __init__(self, members: Sequence[_Member], states: TrainState, seeds: Sequence[int]):
        self._members, self._config = members, members[0].config
        self._seeds = [seeds.index(member.config.seed) for member in members]
        params, self._axes = training.share([member.params for member in members])
        self._programs = {'step': [member.ready.program for member in members]}
        self._compiled: dict[Any, Any] = {}
        self._parts = [np.asarray(part) for part in self._cut()]
        self._gone: set[int] = set()
        count = jax.local_device_count()
        even = count > 1 and len(self._parts) == 1 and len(members) % count == 0
        self._mesh = Mesh(np.asarray(jax.local_devices()), ('rows',)) if even else None
        everywhere = jax.tree.map(lambda _: 0, states)
        self._states = [self._take(states, everywhere, part) for part in self._parts]
        self._params = [self._take(params, self._axes, part) for part in self._parts]

    def _cut(self) -> list[list[int]]:
        """Places of the rows that go through the program at the same time."""
        size = side_by_side(self._config, len(self._members))
        # Masks of dropout have the shape of a batch: so that they are those of the row alone, rows
        # whose batches may have other lengths are not side by side.
        noisy = 'random_bits' in self._programs['step'][0].exact
        apart = noisy and len(self._config.data.lengths) > 1
        found: dict[int, list[int]] = {}
        for place, seed in sorted(enumerate(self._seeds), key=lambda pair: pair[1]):
            found.setdefault(seed if apart else 0, []).append(place)
        return [
            places[first : first + size]
            for places in found.values()
            for first in range(0, len(places), size)
        ]

    def _take(self, tree: Any, axes: Any, part: np.ndarray) -> Any:
        """The rows of a part, each device with its share where that is even."""
        flat = jax.tree.leaves(axes, is_leaf=lambda axis: axis is None)
        leaves, structure = jax.tree.flatten(tree)
        taken = [
            leaf if axis is None else leaf[part] for leaf, axis in zip(leaves, flat, strict=True)
        ]
        if self._mesh is not None:
            taken = [
                jax.device_put(
                    leaf, NamedSharding(self._mesh, PartitionSpec(None if axis is None else 'rows'))
                )
                for leaf, axis in zip(taken, flat, strict=True)
            ]
        return jax.tree.unflatten(structure, taken)

    def leave(self, places: Sequence[int]) -> None:
        """Rows that need no more steps: a part of such rows alone is not computed."""
        self._gone.update(places)

    def _busy(self) -> list[int]:
        return [i for i, part in enumerate(self._parts) if not self._gone.issuperset(part.tolist())]

    def states(self) -> TrainState:
        """Of all rows, in their order, on the first device."""
        order = np.argsort(np.concatenate(self._parts))
        parts = self._states
        if self._mesh is not None:
            parts = jax.device_put(parts, jax.local_devices()[0])
        return jax.tree.map(lambda *each: jnp.concatenate(each)[order], *parts)

    def of_rows(self, by_seed: np.ndarray) -> np.ndarray:
        """Each row's part of what each seed has."""
        return by_seed[self._seeds]

    def step(self, by_seed: Sequence[data.Batch]) -> list[tuple[np.ndarray, Any]]:
        """One step of every row: the metrics of each part, with the places of its rows."""
        found = []
        for i in self._busy():
            part = self._parts[i]
            batch = data.beside([by_seed[self._seeds[place]] for place in part])
            self._states[i], metrics = self._call('step', i, self._states[i], batch)
            found.append((part, metrics))
        return found

    def evaluate(self, split: str) -> list[dict[str, float]]:
        """Each row's scores on a split, by name."""
        totals = {name: np.zeros(len(self._members)) for name in ('loss', 'correct', 'weights')}
        for batch in data.eval_batches(
            self._members[0].run.task.splits[split],
            batch_size=self._config.data.eval_batch_size,
            lengths=self._config.data.lengths,
        ):
            # All parts are under way before one is waited for.
            parts = {i: self._call('sums', i, self._states[i].adapter, batch) for i in self._busy()}
            for i, sums in parts.items():
                for name, total in totals.items():
                    total[self._parts[i]] += np.asarray(sums[name], np.float64)
        weights = np.maximum(totals['weights'], 1e-30)  # 0 of rows that are not computed
        losses, accuracies = (totals[name] / weights for name in ('loss', 'correct'))
        return [
            {f'{split}/loss': float(loss), f'{split}/accuracy': float(accuracy)}
            for loss, accuracy in zip(losses, accuracies, strict=True)
        ]

    def _call(self, what: str, i: int, first: Any, batch: Mapping[str, np.ndarray]) -> Any:
        shapes = tuple((name, rows.shape) for name, rows in sorted(batch.items()))
        if (what, shapes) not in self._compiled:
            vectorized = self._vectorize(what, batch)
            donated = 1 if what == 'step' else ()
            numbers = [jax.tree.map(lambda n, p=p: n[p], vectorized.numbers) for p in self._parts]
            self._compiled[what, shapes] = jax.jit(vectorized.call, donate_argnums=donated), numbers
        call, numbers = self._compiled[what, shapes]
        return call(numbers[i], first, self._params[i], batch)

    def _vectorize(self, what: str, batch: Mapping[str, np.ndarray]) -> training.Vectorized:
        axes = (0, self._axes, 0 if what == 'step' else None)
        if what not in self._programs:
            self._programs[what] = [self._trace(what, member, batch) for member in self._members]
        programs = self._programs[what]
        vectorized = training.vectorize(programs, axes)
        widest = vectorized.widest
        here = self._trace(what, self._members[widest], batch)
        return vectorized.at(programs[widest], here, axes)

    def _trace(
        self, what: str, member: _Member, batch: Mapping[str, np.ndarray]
    ) -> training.Program:
        mapped = what == 'step'
        example = {
            name: jax.ShapeDtypeStruct(rows.shape[1:] if mapped else rows.shape, rows.dtype)
            for name, rows in batch.items()
        }
        run = member.run
        if what == 'sums':
            return training.trace(run.sums, member.state.adapter, member.params, example)
        step = make_train_step(run.loss, run.optimizer, accumulate=member.config.accumulate)
        return training.trace(step, member.state, member.params, example)


class _Window:
    """The steps since each row's last log line."""

    def __init__(self, rows: int):
        self._steps: list[tuple[int, Any, np.ndarray]] = []
        self._rows = rows
        self._read = [0] * rows
        self._started = [time.perf_counter()] * rows

    def add(self, step: int, parts: Sequence[tuple[np.ndarray, Any]], tokens: np.ndarray) -> None:
        """Adds a step: its number, what `_Together.step` gave, and the tokens of all rows."""
        self._steps.append((step, parts, tokens))

    def keep(self, places: Sequence[int]) -> None:
        """Only these rows are in the program from now on, in this order."""
        self._steps = [
            (
                number,
                {name: values[places] for name, values in self._by_name(metrics).items()},
                tokens[places],
            )
            for number, metrics, tokens in self._steps
        ]
        self._rows = len(places)
        self._read = [self._read[place] for place in places]
        self._started = [self._started[place] for place in places]

    def go_on(self, places: Sequence[int]) -> None:
        """Of the rows that train, those that were read are timed from now on."""
        for place in places:
            if self._read[place] == len(self._steps):
                self._started[place] = time.perf_counter()
        read = min((self._read[place] for place in places), default=0)
        self._steps = self._steps[read:]
        self._read = [max(0, number - read) for number in self._read]

    def read(self, place: int) -> tuple[dict[str, float], int | None]:
        """A row's means and speeds, and its first step that is not finite; then it starts anew."""
        self._steps = [(n, self._by_name(m), tokens) for n, m, tokens in self._steps]
        steps_here = self._steps[self._read[place] :]
        seconds = time.perf_counter() - self._started[place]
        columns = {
            name: [float(metrics[name][place]) for _, metrics, _ in steps_here]
            for name in steps_here[0][1]
        }
        bad = None
        for index, (number, _, _) in enumerate(steps_here):
            if not math.isfinite(columns['loss'][index] + columns['grad_norm'][index]):
                bad = number
                break
        self._read[place] = len(self._steps)
        tokens = sum(float(tokens[place]) for _, _, tokens in steps_here)
        means = {name: float(np.mean(column)) for name, column in columns.items()}
        means |= {
            'steps_per_second': len(steps_here) / seconds,
            'tokens_per_second': tokens / seconds,
        }
        return means, bad

    def _by_name(self, parts: Any) -> dict[str, np.ndarray]:
        """Metrics of all rows in their order, on the host."""
        if isinstance(parts, dict):
            return parts
        found: dict[str, np.ndarray] = {}
        for places, metrics in jax.device_get(parts):
            for name, values in metrics.items():
                found.setdefault(name, np.zeros(self._rows))[places] = values
        return found


def _median(rows: Sequence[Mapping[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return float(np.median(values)) if values else math.nan
