"""Trains one run to its end, with its own folder if it has one."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

import peftjax
from peftjax.train.artifacts import RESULT, Artifacts, result_table
from peftjax.train.checkpoints import Checkpoints
from peftjax.train.data_marks import data_marks
from peftjax.train.engine import Alone
from peftjax.train.fingerprint import fingerprint
from peftjax.train.hooks import OnStep
from peftjax.train.interrupt import requests_to_stop
from peftjax.train.loop import Loop
from peftjax.train.member import Member
from peftjax.train.owner import OwnedError, owned
from peftjax.train.placement import Placement
from peftjax.train.profile import Trace
from peftjax.train.progress import StepProgress, step_progress
from peftjax.train.redo import go_back, take_back
from peftjax.train.run import Run
from peftjax.train.run_folder import check_is_same
from peftjax.train.step import TrainState
from peftjax.train.task import Beside, Task
from peftjax.train.trackers.registry import trackers_of


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of a run.

    Attributes:
        model, transform, task: the model, the method and the task of the run.
        adapter: the adapter after the last step.
        frozen: everything that the method does not train.
        best_adapter: the adapter of the best evaluation; the last one without a validation split.
        best_step: the step of the best evaluation; None without a validation split.
        result: scores and costs by name, as in result.json.
        workdir: the folder of the run; None if nothing was written.
    """

    model: peftjax.Model
    transform: peftjax.PeftTransform
    task: Task
    adapter: Any
    frozen: peftjax.Frozen
    best_adapter: Any
    best_step: int | None
    result: Mapping[str, Any]
    workdir: Path | None


class _Ready(NamedTuple):
    """A run whose arrays are on their devices.

    Attributes:
        run: the run; its model has shapes in place of values, unless the values are kept.
        member, engine: its member and its engine.
        beside: everything that the run does not train.
        base: fingerprint of the base and of `beside`; '' if nothing is written.
    """

    run: Run
    member: Member
    engine: Alone
    beside: Beside
    base: str


def run_alone(
    make: Callable[[], Run],
    folder: Path | None,
    placement: Placement,
    *,
    trackers: Sequence[str],
    console: Console,
    on_step: Sequence[OnStep] = (),
    profile: bool = False,
    allow_changed_data: bool = False,
    keep_values: bool = False,
) -> Fit:
    """Trains one run to its end. `make` builds it, so that no caller keeps its base in memory.

    keep_values: whether the model keeps its values, some of which may be in the adapter too.

    Raises:
        OwnedError: another process works in the folder.
        ValueError: the folder holds a run with other settings, on another base or on other data.
    """
    artifacts, shown = Artifacts(), _Shown(console)
    with ExitStack() as stack:
        if folder is not None:
            _own(folder, stack)
        sinks = trackers_of(trackers)
        ready = _start(make(), folder, placement, sinks, console, keep_values)
        run, member, engine = ready.run, ready.member, ready.engine
        checkpoints = None
        if folder is not None:
            checkpoints = Checkpoints(
                folder,
                run.description,
                ready.base,
                data=data_marks(run),
                allow_changed_data=allow_changed_data,
                say=_printing(console),
            )
            stack.enter_context(closing(checkpoints))
            if placement.is_main_process and (why := take_back(folder)):
                _printing(console)(f'the run counts as unfinished, as its folder is damaged: {why}')
            if not (folder / RESULT).exists():
                go_back(checkpoints, [member], _printing(console))
        machine = peftjax.plan.machine_here()
        loop = Loop(
            [member],
            engine,
            checkpoints,
            ending=artifacts,
            tell=shown.tell,
            on_step=(*on_step, shown.moved),
            trace=Trace(folder / 'profile') if profile and folder is not None else None,
            peak=machine and machine.flops * placement.devices,
            alone=True,
        )
        stack.enter_context(closing(loop))
        if loop.done < run.steps:
            stopped = stack.enter_context(requests_to_stop())
            with step_progress(console, total=run.steps, done=loop.done) as shown.progress:
                loop.run(stopped)
        result = artifacts.results.get(member.name) or artifacts.written(member)
    if folder is not None and placement.is_main_process:
        console.print(result_table(member, result))
        # Without line breaks, since it holds a command to copy.
        console.print(artifacts.left(member, result), highlight=False, markup=False, soft_wrap=True)
    last, frozen = engine.state(0).adapter, ready.beside.frozen
    best = last if member.best is None else member.best_written(engine.state(0))
    step = None if member.best is None else member.best.step
    return Fit(run.model, run.transform, run.task, last, frozen, best, step, result, folder)


def _own(folder: Path, stack: ExitStack) -> None:
    """Locks a folder in the first process. If it is in use, every process raises `OwnedError`."""
    refused = None
    if jax.process_index() == 0:
        try:
            stack.enter_context(owned(folder))
        except OwnedError as error:
            refused = error
    if jax.process_count() > 1:
        free = np.asarray(refused is None)
        if not multihost_utils.broadcast_one_to_all(free) and refused is None:
            refused = OwnedError(f'{folder} is in use: the first process says by whom')
    if refused is not None:
        raise refused


def _start(
    run: Run,
    folder: Path | None,
    placement: Placement,
    trackers: Any,
    console: Console,
    keep_values: bool,
) -> _Ready:
    """Places the arrays of a run, and prints its rows and its trainable parameters."""
    counts = ', '.join(f'{name} {len(rows):,}' for name, rows in run.task.splits.items())
    for note in (f'rows: {counts}', *run.task.notes):
        console.print(note, highlight=False, markup=False)
    is_main = placement.is_main_process
    if folder is not None and is_main:
        check_is_same(folder, run.description)
    member = Member(run, folder if is_main else None, trackers if is_main else None)
    run.check_best(member.state.adapter, member.beside)
    console.print(f'{member.summary}\n', highlight=False)
    if member.unsaved is not None:
        warnings.warn(
            f'no adapter is written to {folder}, only checkpoints: {member.unsaved}', stacklevel=4
        )
    state: TrainState = placement.state(member.state, run.model)
    beside: Beside = placement.beside(member.beside, run.model)
    fixed = run.model.params, beside.frozen
    fixed = fixed if beside.constants is None else (*fixed, beside.constants)
    base = '' if folder is None else fingerprint(fixed)
    if not keep_values:
        # Otherwise a leaf that moved into the adapter would be in memory twice.
        run = run.without_values()
    # The engine alone holds the state from now on: a step overwrites it.
    engine = Alone(run, state, beside, placement)
    member.run, member.beside = run, beside
    member.state = jax.eval_shape(lambda: state)
    return _Ready(run, member, engine, beside, base)


def _printing(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, highlight=False, markup=False)


class _Shown:
    """Shows a run's progress: the bar moves, and scores stay as lines."""

    def __init__(self, console: Console):
        self._console = console
        self.progress: StepProgress | None = None

    def moved(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Moves the bar."""
        del metrics
        if self.progress is not None:
            self.progress.update(step)

    def tell(self, name: str, values: Mapping[str, Any]) -> None:
        """Shows the numbers that the run reports."""
        del name
        if self.progress is None:
            return
        if 'loss' in values:
            status = f'loss {values["loss"]:.4f}  {values["tokens_per_second"]:,.0f} tokens/s'
            self.progress.update(values['step'], status)
        scores = {n: v for n, v in values.items() if n.startswith('validation/')}
        if scores:
            line = '  '.join(f'{name} {value:.4f}' for name, value in scores.items())
            self.progress.say(f'step {values["step"]}: {line}')
