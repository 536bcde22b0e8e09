"""Decides which rows of a sweep run in one program, and how many at a time."""

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import peftjax
from peftjax.sweep.alike import program_of
from peftjax.sweep.rows import SweepRun
from peftjax.train.build import build, build_model, build_task
from peftjax.train.placement import Placement
from peftjax.train.run import Run, example_batch
from peftjax.train.settings import MeshSettings, Settings
from peftjax.train.step import TrainState
from peftjax.train.task import Beside, Task

BUSY = 512  # positions in a step that keep a CPU busy


Step = Callable[[Any, TrainState, Beside, Any], tuple[TrainState, dict[str, jax.Array]]]


class Ready(NamedTuple):
    """A row, built and traced.

    Attributes:
        row: what it changes.
        run: its parts.
        step: `step(numbers, state, beside, batch)`.
        numbers: of its optimiser and penalties; empty if these cannot be traced.
        flops: of the matrix products of a step, at the greatest length.
        size: of its state.
        key: equal for rows that may share a program.
    """

    row: SweepRun
    run: Run
    step: Step
    numbers: Any
    flops: float
    size: int
    key: Any


class Group(NamedTuple):
    """Rows that run together.

    Attributes:
        name: of its folder.
        rows: in the order of the sweep.
        base: bytes of the base, and of the method's own numbers.
        each: of a row's adapter and optimiser.
        step: of gradients and activations of a row, while it takes a step.
    """

    name: str
    rows: list[Ready]
    base: int
    each: int
    step: int

    @property
    def names(self) -> list[str]:
        """Of its rows."""
        return [ready.row.name for ready in self.rows]

    @property
    def memory(self) -> int:
        """Bytes that a step takes, estimated without compiling."""
        count = len(self.rows)
        return (
            self.base + count * self.each + side_by_side(self.rows[0].run.task, count) * self.step
        )

    @property
    def products(self) -> float:
        """FLOPs of the matrix products of all steps of all rows."""
        return sum(ready.flops * ready.run.steps for ready in self.rows)


class _Shelf:
    """Models and tasks by their settings, each loaded once."""

    def __init__(self) -> None:
        self._models: dict[str, dict[int, peftjax.Model]] = {}
        self._tasks: dict[str, Task] = {}

    def model(self, settings: Settings) -> peftjax.Model:
        """The base of some settings; all seeds share it, except for a new head."""
        seeds = self._models.setdefault(repr((settings.model, settings.task)), {})
        if settings.seed not in seeds:
            like = next(iter(seeds.values()), None)
            seeds[settings.seed] = build_model(settings, Placement.of(settings.mesh), like)
        return seeds[settings.seed]

    def task(self, settings: Settings) -> Task:
        name = repr((settings.model, settings.task, settings.data))
        if name not in self._tasks:
            self._tasks[name] = build_task(settings, self.model(settings))
        return self._tasks[name]


def prepare(rows: Sequence[SweepRun]) -> list[Ready]:
    """Builds and traces every row; nothing is compiled or trained.

    Raises:
        ValueError: a row that cannot run, with its name.
    """
    shelf, ready = _Shelf(), []
    for row in rows:
        try:
            if row.settings.mesh != MeshSettings():
                raise ValueError('runs of a sweep share devices: leave all axes of mesh at 1')
            run = build(row.settings, shelf.model(row.settings), shelf.task(row.settings))
            ready.append(_ready(row, run))
        except ValueError as error:
            raise ValueError(f'run {row.name} {row.changes}: {error}') from error
    return ready


def _ready(row: SweepRun, run: Run) -> Ready:
    state, beside = jax.eval_shape(run.start)
    run.check_best(state.adapter, beside)
    batch = example_batch(run.task)
    numbers = run.numbers
    step, abstract = run.step, jax.tree.map(_as_shape, numbers)
    try:
        flops = peftjax.plan.flops(step, abstract, state, beside, batch)
        fixed = None
    except (TypeError, ValueError, jax.errors.JAXTypeError):
        # An optimiser that reads its numbers in Python: only runs with equal numbers share its
        # program.
        step, fixed = functools.partial(_with_numbers, step, numbers), json.dumps(numbers)
        flops, numbers = peftjax.plan.flops(step, {}, state, beside, batch), {}
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    key = fixed, program_of(row.settings, run, state, beside.frozen)
    return Ready(row, run, step, numbers, flops, size, key)


def _with_numbers(step: Step, numbers: Any, _: Any, *args: Any) -> Any:
    return step(numbers, *args)


def _as_shape(number: float) -> jax.ShapeDtypeStruct:
    del number
    return jax.ShapeDtypeStruct((), jnp.float32)


def group(ready: Sequence[Ready], limit: float, most: int) -> list[Group]:
    """Rows of one program together, in groups of at most `most` rows that fit `limit` bytes.

    Raises:
        ValueError: not even one row of a program fits.
    """
    alike: dict[Any, list[Ready]] = {}
    for each in ready:
        alike.setdefault(each.key, []).append(each)
    groups: list[Group] = []
    for members in alike.values():
        whole = as_group('', members)
        room = sum(
            1 for n in range(1, most + 1) if whole._replace(rows=members[:1] * n).memory <= limit
        )
        if not room:
            least = whole._replace(rows=members[:1]).memory
            raise ValueError(
                f'run {members[0].row.name} takes {least / 2**20:,.0f} MiB, more than the '
                f'{limit / 2**20:,.0f} MiB there are: write a smaller batch, accumulate, or '
                "model.remat='full'"
            )
        count = -(-len(members) // room)
        size = -(-len(members) // count)
        for first in range(0, len(members), size):
            rows = members[first : first + size]
            groups.append(whole._replace(name=f'{len(groups):03d}', rows=rows))
    return groups


def side_by_side(task: Task, rows: int) -> int:
    """How many of the rows of a program are computed at the same time.

    An accelerator computes all of them. A few rows keep a CPU busy, and more make it slower,
    because arrays leave its caches. So on a CPU they go through the program in parts.
    """
    if jax.default_backend() != 'cpu':
        return rows
    positions = task.batch_size * max(task.lengths, default=1)
    return min(rows, max(1, BUSY // positions))


def as_group(name: str, members: Sequence[Ready]) -> Group:
    """Rows of one program as a group; the memory of a row is that of the widest."""
    run = widest_of(members).run
    state, beside, own, parts = jax.eval_shape(lambda: _started(run))
    batch = example_batch(run.task)
    part = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (leaf.shape[0] // run.accumulate, *leaf.shape[1:]), leaf.dtype
        ),
        batch,
    )
    activations = peftjax.plan.activation_bytes(run.loss, state.adapter, beside, part)
    adapter, optimizer = _bytes(state.adapter), _bytes(state.opt_state)
    base = _bytes((run.model.params, own))
    each = adapter + optimizer + _bytes(parts)
    return Group(name, list(members), base, each, adapter + activations)


def widest_of(members: Sequence[Ready]) -> Ready:
    """The row with the largest state; the states of the others are padded to it."""
    return max(members, key=lambda each: each.size)


def _started(run: Run) -> tuple[TrainState, Beside, list[jax.Array], list[jax.Array]]:
    """The start of a run: its state, `beside`, its own arrays, and the rests of leaves.

    An array that several sites share is listed once. The rests are what remains of leaves that the
    method moved in part; each run has them for itself.
    """
    state, beside = run.start()
    distinct = {id(leaf): leaf for leaf in jax.tree.leaves((beside.frozen.own, beside.constants))}
    model = set(map(id, jax.tree.leaves(run.model.params)))
    parts = [leaf for leaf in jax.tree.leaves(beside.frozen.params) if id(leaf) not in model]
    return state, beside, list(distinct.values()), parts


def memory_here() -> float:
    """Bytes that a group may take: most of a device's memory, half of a host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' in stats:
        return 0.9 * stats['bytes_limit']
    return 0.5 * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def _bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
    )
