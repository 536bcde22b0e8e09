"""`fit`: trains a method on a task, from a notebook or from settings."""

from collections.abc import Sequence
from pathlib import Path

import optax
from jax.sharding import Mesh
from rich.console import Console

import peftjax
from peftjax.train import cadence
from peftjax.train.alone import Fit, run_alone
from peftjax.train.build import build
from peftjax.train.hooks import OnStep
from peftjax.train.metrics.registry import better
from peftjax.train.placement import Placement
from peftjax.train.progress import terminal
from peftjax.train.run import Run
from peftjax.train.settings import Settings
from peftjax.train.task import Evaluator, Task
from peftjax.train.tasks.infer import infer


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
    allow_changed_data: bool = False,
    best: str | None = None,
    log_every: str = '20 steps',
    eval_every: str = '1 epoch',
    save_every: str = '1 epoch',
    on_step: Sequence[OnStep] = (),
    console: Console | None = None,
) -> Fit:
    """Trains a method on a task.

    The loss of a batch is `totals['loss'] / totals['weights']` of the task; its gradient with
    respect to the adapter goes to the optimiser. The validation split is scored after every
    `eval_every`, and the adapter of the best score is kept. With a work folder, the run can be
    stopped at any time: the same call goes on from the newest checkpoint, and gives the same bits
    as a run that was not stopped.

    Args:
        model: from `peftjax.load` or `peftjax.wrap`.
        transform: the method.
        task: from `peftjax.train.tasks`, or your own.
        optimizer: any optax transformation, with its schedule.
        duration: '3 epochs', '500 steps' or '10000 examples'.
        workdir: for checkpoints, metrics, the adapters and the result; None writes nothing.
        evaluators: compute further scores, beside those of the task.
        trackers: where numbers are sent, by name: 'tensorboard', 'wandb', 'mlflow', 'trackio', or
            'package.module:function'.
        mesh: from `peftjax.make_mesh`; the model must lie on it. None uses the first device.
        accumulate: parts of a batch, one after another, that make one step.
        seed: decides the adapter's start and the order of the examples.
        resume: False refuses a work folder that holds a run.
        allow_changed_data: go on in a work folder whose run had other rows or another tokenizer.
        best: the score of the validation split that chooses the best adapter, with a minus sign in
            front if less is better; None takes the task's own.
        log_every, eval_every, save_every: durations.
        on_step: called with the step and its metrics, arrays on the device, after every step.
        console: where progress is shown; None shows nothing.

    Returns:
        The adapters, the scores and the folder; see `Fit`.

    Raises:
        ValueError: the work folder holds a run with other settings, on another base or on other
            data, or any run if resume is False; another process works in it; a duration is not a
            number with a unit; there are too few examples for a batch.
        NonFiniteError: the loss or the gradient became NaN or infinite. The newest checkpoint is
            from before that step.
        Interrupted: SIGTERM came; the state was saved.
        CheckpointsError: a checkpoint could not be written, or no checkpoint is whole.

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
        allow_changed_data=allow_changed_data,
        keep_values=True,
    )


def train(
    settings: Settings,
    workdir: str | Path,
    console: Console | None = None,
    *,
    profile: bool = False,
    allow_changed_data: bool = False,
) -> Fit:
    """Trains the run of some settings, from the newest checkpoint in the work folder if any.

    A run that was interrupted and started again gives the same bits as one that was not. On another
    mesh, this holds as far as the mesh computes the same bits.

    Args:
        settings: of the run.
        workdir: gets config.json, metrics.jsonl, checkpoints/, adapter/ (the best), adapter_last/,
            adapter_peft/ if Hugging Face's peft computes the same, README.md (a model card),
            learning_curve.png and result.json.
        console: where progress and results are shown.
        profile: write a trace of three steps, the tenth of this start and two more, to
            `workdir/profile`, for TensorBoard and Perfetto.
        allow_changed_data: see `fit`.

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
        allow_changed_data=allow_changed_data,
    )
