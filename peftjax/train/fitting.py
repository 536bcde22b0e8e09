"""`fit`: trains a method on a task, from a notebook or from settings."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from rich.console import Console

import peftjax
from peftjax.train import cadence
from peftjax.train.artifacts import Artifacts, result_table
from peftjax.train.build import build
from peftjax.train.checkpoints import Checkpoints
from peftjax.train.engine import Alone
from peftjax.train.fingerprint import fingerprint
from peftjax.train.interrupt import requests_to_stop
from peftjax.train.loop import Loop, OnStep
from peftjax.train.member import Member
from peftjax.train.metrics.registry import better
from peftjax.train.placement import Placement
from peftjax.train.profile import Trace
from peftjax.train.progress import StepProgress, step_progress, terminal
from peftjax.train.run import Run
from peftjax.train.settings import Settings
from peftjax.train.step import TrainState
from peftjax.train.task import Beside, Evaluator, Task
from peftjax.train.tasks.infer import infer
from peftjax.train.trackers.registry import trackers_of


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a run gives.

    Attributes:
        model, transform, task: that it trained.
        adapter: after the last step. frozen: everything beside it.
        best_adapter: of the best evaluation; the last one where there is no validation split.
        best_step: when that was; None without a validation split.
        result: scores and costs by name, as result.json holds them.
        workdir: its folder; None where nothing was written.
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


def fit(
    model: peftjax.Model,
    transform: peftjax.PeftTransform,
    task: Task,
    *,
    optimizer: optax.GradientTransformation,
    duration: str,
    workdir: str | Path | None = None,
    evaluators: Sequence[Evaluator] = (),
    trackers: Sequence[str] = (),
    mesh: Mesh | None = None,
    accumulate: int = 1,
    seed: int = 0,
    resume: bool = True,
    best: str | None = None,
    log_every: str = '20 steps',
    eval_every: str = '1 epoch',
    save_every: str = '1 epoch',
    on_step: Sequence[OnStep] = (),
    console: Console | None = None,
) -> Fit:
    """Trains a method on a task.

    The loss of a batch is `totals['loss'] / totals['weights']` of the task; its gradient by the
    adapter goes to the optimiser. The validation split is scored after every `eval_every`, and the
    adapter of the best score is kept. With a work folder the run can be stopped at any time: the
    same call goes on from the newest checkpoint, with the same bits as a run that was not stopped.

    Args:
        model: of `peftjax.load` or `peftjax.wrap`.
        transform: the method.
        task: of `peftjax.train.tasks`, or your own.
        optimizer: any optax transformation, with its schedule.
        duration: '3 epochs', '500 steps' or '10000 examples'.
        workdir: for checkpoints, metrics, the adapters and the result; None writes nothing.
        evaluators: further scores, beside those of the task.
        trackers: where numbers are sent, by name: 'tensorboard', 'wandb', 'mlflow', 'trackio', or
            'package.module:function'.
        mesh: of `peftjax.make_mesh`; the model must lie on it. None is the first device.
        accumulate: parts of a batch, one after another, that make one step.
        seed: decides the adapter's start and the order of the examples.
        resume: False refuses a work folder that holds a run.
        best: the score of the validation split that chooses the best adapter, with a minus sign in
            front where less is better; the task's own unless given.
        log_every, eval_every, save_every: durations.
        on_step: called with the step and its metrics, arrays on the device, after every step.
        console: where progress is shown; nowhere unless given.

    Returns:
        See `Fit`.

    Raises:
        ValueError: a work folder of a run with other settings or on another base, or any with
            resume=False; a duration that does not read as one; too few examples for a batch.
        NonFiniteError: the loss or the gradient became NaN or infinite. The newest checkpoint is
            from before that step.
        Interrupted: SIGTERM came; the state was saved.
        CheckpointsError: a checkpoint could not be written, or none of those there is whole.

    Example:
        >>> import numpy as np, optax
        >>> rows = [{'x': np.full(4, i % 2, np.float32), 'y': np.int32(i % 2)} for i in range(16)]
        >>> def totals(forward, batch):
        ...     logits = forward({'x': batch['x']})
        ...     losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
        ...     return {'loss': losses.sum(), 'weights': jnp.float32(len(losses))}
        >>> task = peftjax.train.Task(splits={'train': rows}, totals=totals, batch_size=8)
        >>> mlp = peftjax.testing.tiny_mlp()
        >>> tx = peftjax.lora(rank=2, targets=r'hidden')
        >>> done = fit(mlp, tx, task, optimizer=optax.adam(1e-2), duration='4 steps')
        >>> done.result['steps'], jax.tree.structure(done.adapter) == jax.tree.structure(
        ...     tx.init(jax.random.key(0), mlp)[0])
        (4, True)
    """
    folder = None if workdir is None else Path(workdir)
    if folder is not None and not resume and (folder / 'checkpoints').exists():
        raise ValueError(f'{folder} holds a run: choose another workdir, or set resume=True')
    if not task.splits.get('train'):
        raise ValueError(f'the task has no rows to train on; its splits are {list(task.splits)}')
    steps_per_epoch = len(task.splits['train']) // task.batch_size

    def in_steps(text: str) -> int:
        return cadence.steps(text, steps_per_epoch=steps_per_epoch, batch_size=task.batch_size)

    description = {
        'transform': repr(transform),
        'seed': seed,
        'duration': duration,
        'accumulate': accumulate,
        'batch_size': task.batch_size,
        'rows': {name: len(rows) for name, rows in task.splits.items()},
        'best': task.best if best is None else best,
        'log_every': log_every,
        'eval_every': eval_every,
        'save_every': save_every,
    }
    run = Run(
        model=model,
        transform=transform,
        task=task,
        make_optimizer=lambda _: optimizer,
        steps=in_steps(duration),
        steps_per_epoch=steps_per_epoch,
        log_every=in_steps(log_every),
        eval_every=in_steps(eval_every),
        save_every=in_steps(save_every),
        accumulate=accumulate,
        best=better(task.best if best is None else best),
        evaluators=(*task.evaluators, *evaluators),
        seed=seed,
        description=description,
    )
    return run_alone(
        lambda: run,
        folder,
        Placement(mesh),
        trackers=trackers,
        on_step=on_step,
        console=terminal(quiet=True) if console is None else console,
        keep_values=True,
    )


def train(
    settings: Settings,
    workdir: str | Path,
    console: Console | None = None,
    *,
    profile: bool = False,
) -> Fit:
    """Runs settings to their end, from the newest checkpoint in the work folder if there is one.

    A run that is interrupted and started again ends with the same bits as one that was not, on
    another mesh too, as far as that computes the same.

    Args:
        settings: of the run.
        workdir: gets config.json, metrics.jsonl, checkpoints/, adapter/ (the best), adapter_last/,
            adapter_peft/ where Hugging Face's peft computes the same, README.md (a model card),
            learning_curve.png and result.json.
        console: where progress and results are shown.
        profile: write a trace of three steps, the tenth of this start and two more, to
            `workdir/profile`, for TensorBoard and Perfetto.

    Raises:
        SettingsError: the settings do not fit.
        ValueError, NonFiniteError, Interrupted, CheckpointsError: as `fit`.
    """
    folder, console = Path(workdir), terminal() if console is None else console
    placement = Placement.of(settings.mesh)
    return run_alone(
        lambda: build(infer(settings)),
        folder,
        placement,
        trackers=settings.trackers,
        console=console,
        profile=profile,
    )


def run_alone(
    make: Callable[[], Run],
    folder: Path | None,
    placement: Placement,
    *,
    trackers: Sequence[str],
    console: Console,
    on_step: Sequence[OnStep] = (),
    profile: bool = False,
    keep_values: bool = False,
) -> Fit:
    """Trains one run to its end; `make` builds it, so that nobody else holds its base.

    keep_values: of the model, which a method may have moved into the adapter.
    """
    sinks = trackers_of(trackers)
    run = make()
    for note in run.task.notes:
        console.print(note, highlight=False)
    is_main = placement.is_main_process
    member = Member(run, folder if is_main else None, sinks if is_main else None)
    run.check_best(member.state.adapter, member.beside)
    console.print(f'{member.summary}\n', highlight=False)
    if member.unsaved is not None:
        warnings.warn(
            f'no adapter is written to {folder}, only checkpoints: {member.unsaved}', stacklevel=3
        )
    state: TrainState = placement.state(member.state, run.model)
    beside: Beside = placement.beside(member.beside, run.model)
    fixed = run.model.params, beside.frozen
    fixed = fixed if beside.constants is None else (*fixed, beside.constants)
    base = '' if folder is None else fingerprint(fixed)
    if not keep_values:
        # So that no leaf that moved into the adapter is held beside it.
        run = run.without_values()
    # The engine alone holds the state from now on: a step overwrites it.
    engine = Alone(run, state, beside, placement)
    member.run, member.beside = run, beside
    member.state = state = jax.eval_shape(lambda: state)
    artifacts = Artifacts()
    with ExitStack() as stack:
        checkpoints = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints = Checkpoints(folder, run.description, base, say=_printing(console))
            stack.enter_context(closing(checkpoints))
        shown = _Shown(console)
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
    if folder is not None and is_main:
        console.print(result_table(member, result))
        # Unbroken, as it holds a command to copy.
        console.print(artifacts.left(member, result), highlight=False, markup=False, soft_wrap=True)
    last = engine.state(0).adapter
    best = last if member.best is None else member.best_written(engine.state(0))
    step = None if member.best is None else member.best.step
    return Fit(run.model, run.transform, run.task, last, beside.frozen, best, step, result, folder)


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
        """Takes what the run tells."""
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
