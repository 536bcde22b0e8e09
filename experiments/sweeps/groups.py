"""Which rows of a sweep run in one program, and how many of them at a time."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import peftjax
from experiments.build import Run, build, build_model, build_task, start
from experiments.config import Config
from experiments.data import collate
from experiments.placement import Placement
from experiments.sweeps.rows import Row
from experiments.tasks import Task
from peftjax import training
from peftjax.training import Program, TrainState, make_train_step, program_key, trace

BUSY = 512  # positions in a step that keep a CPU busy
# What decides when something happens, and on what: equal in all rows of a program.
_SHARED = ('model', 'data', 'log_every', 'eval_every', 'save_every', 'accumulate', 'mesh')


class Ready(NamedTuple):
    """A row, built and traced.

    Attributes:
        row: what it changes.
        run: its parts.
        program: of a step, at the greatest length.
        key: equal for rows that may share a program.
    """

    row: Row
    run: Run
    program: Program
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
        """Bytes that a step takes, counted and not compiled."""
        count = len(self.rows)
        return (
            self.base + count * self.each + side_by_side(self.rows[0].row.config, count) * self.step
        )

    @property
    def products(self) -> float:
        """FLOPs of the matrix products of all steps of all rows."""
        return sum(ready.program.flops * ready.run.steps for ready in self.rows)


class _Shelf:
    """Models and tasks by their settings, each there once."""

    def __init__(self) -> None:
        self._models: dict[str, dict[int, peftjax.Model]] = {}
        self._tasks: dict[str, Task] = {}

    def model(self, config: Config) -> peftjax.Model:
        """The base of a config: one for all seeds, but for a new head."""
        seeds = self._models.setdefault(config.model.to_json(), {})
        if config.seed not in seeds:
            like = next(iter(seeds.values()), None)
            seeds[config.seed] = build_model(config, Placement(config), like)
        return seeds[config.seed]

    def task(self, config: Config) -> Task:
        name = config.data.to_json() + config.model.to_json()
        if name not in self._tasks:
            self._tasks[name] = build_task(config, self.model(config))
        return self._tasks[name]


def prepare(rows: Sequence[Row]) -> list[Ready]:
    """Builds and traces every row; nothing is compiled or trained.

    Raises:
        ValueError: a row that cannot run, with its name.
    """
    shelf, ready = _Shelf(), []
    for row in rows:
        try:
            if any(size != 1 for size in row.config.mesh.values()):
                raise ValueError('rows of a sweep share devices: leave config.mesh at 1 each')
            run = build(row.config, shelf.model(row.config), shelf.task(row.config))
            ready.append(_ready(row, run))
        except ValueError as error:
            raise ValueError(f'row {row.name} {row.changes}: {error}') from error
    return ready


def _ready(row: Row, run: Run) -> Ready:
    state, frozen = jax.eval_shape(lambda: start(row.config, run))
    batch = example_batch(run.task, row.config)
    step = make_train_step(run.loss, run.optimizer, accumulate=row.config.accumulate)
    program = trace(step, state, frozen, batch)
    shared = {name: _plain(row.config[name]) for name in _SHARED}
    key = program_key(program, run.transform), json.dumps(shared, sort_keys=True)
    return Ready(row, run, program, key)


def example_batch(task: Task, config: Config) -> Any:
    """A training batch of the greatest length, as shapes."""
    rows = [task.splits['train'][0]] * config.data.batch_size
    batch = collate(rows, (max(config.data.lengths, default=0),))  # images have no length
    return {name: jax.ShapeDtypeStruct(each.shape, each.dtype) for name, each in batch.items()}


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
                f'row {members[0].row.name} takes {least / 2**20:,.0f} MiB, more than the '
                f'{limit / 2**20:,.0f} MiB there are: a smaller batch, --config.accumulate or '
                "--config.model.remat='full' need less"
            )
        count = -(-len(members) // room)
        size = -(-len(members) // count)
        for first in range(0, len(members), size):
            rows = members[first : first + size]
            groups.append(whole._replace(name=f'{len(groups):03d}', rows=rows))
    return groups


def side_by_side(config: Config, rows: int) -> int:
    """How many of the rows of a program are computed at the same time.

    An accelerator computes all of them. A CPU is busy with few, and slower with more, as arrays
    leave its caches: there they go through the program one after another.
    """
    if jax.default_backend() != 'cpu':
        return rows
    positions = config.data.batch_size * max(config.data.lengths, default=1)
    return min(rows, max(1, BUSY // positions))


def as_group(name: str, members: Sequence[Ready]) -> Group:
    """Rows of one program as a group; what a row takes is counted for the widest."""
    widest = max(members, key=lambda each: sum(map(math.prod, each.program.shapes)))
    config, run = widest.row.config, widest.run
    state, frozen, own = jax.eval_shape(lambda: _started(config, run))
    batch = example_batch(run.task, config)
    part = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (leaf.shape[0] // config.accumulate, *leaf.shape[1:]), leaf.dtype
        ),
        batch,
    )
    activations = training.activation_bytes(run.loss, state.adapter, frozen, part)
    adapter, optimizer = _bytes(state.adapter), _bytes(state.opt_state)
    base = _bytes((run.model.params, own))
    return Group(name, list(members), base, adapter + optimizer, adapter + activations)


def _started(config: Config, run: Run) -> tuple[TrainState, peftjax.Frozen, list[jax.Array]]:
    """What `start` gives, and the method's own numbers, those that sites share once."""
    state, frozen = start(config, run)
    distinct = {id(leaf): leaf for leaf in jax.tree.leaves(frozen.own)}
    return state, frozen, list(distinct.values())


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


def _plain(value: Any) -> Any:
    return json.loads(value.to_json()) if hasattr(value, 'to_json') else value
