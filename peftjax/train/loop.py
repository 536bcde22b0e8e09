"""The training loop: fine-tunes an adapter on a frozen base, evaluates it, writes the results."""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from rich.console import Console

import peftjax
from peftjax.plan.counting import flops
from peftjax.plan.machines import machine_here
from peftjax.train import run_report
from peftjax.train.build import Run, build, evaluate, start, without_values
from peftjax.train.cadence import is_due, steps
from peftjax.train.checkpoints import Checkpoints
from peftjax.train.config import Config
from peftjax.train.data import batches as data
from peftjax.train.files import write_whole
from peftjax.train.fingerprint import fingerprint
from peftjax.train.interrupt import Interrupted, requests_to_stop
from peftjax.train.profile import Trace
from peftjax.train.progress import StepProgress, step_progress
from peftjax.train.step import TrainState, make_train_step
from peftjax.train.trackers.log import MetricsWriter, Silence, read_metrics
from peftjax.train.window import StepWindow


def train(
    config: Config, workdir: Path, console: Console, *, profile: bool = False
) -> dict[str, float]:
    """Runs a config to its end, from the newest checkpoint in the work folder if there is one.

    A run that is interrupted and started again ends with the same bits as one that was not, on
    another mesh too, as far as that computes the same.

    Args:
        config: see configs/lora_sentiment.py.
        workdir: gets config.json, metrics.jsonl, tensorboard/, checkpoints/, learning_curve.png and
            result.json.
        console: where progress and results are shown.
        profile: write a trace of three steps, the tenth of this start and two more, to
            `workdir/profile`, for TensorBoard and Perfetto.

    Returns:
        The results, as written to result.json; in further processes of a run, the scores alone.

    Raises:
        NonFiniteError: the loss or the gradient became NaN or infinite. The newest checkpoint is
            from before that step.
        Interrupted: SIGTERM came; the state was saved.
        CheckpointsError: a checkpoint could not be written, or none of those there is whole.
        ValueError: the config does not fit, or the work folder holds a run with another config or
            on another base.
    """
    resolved = json.loads(config.to_json())
    workdir.mkdir(parents=True, exist_ok=True)

    # 1. The parts. The base comes from config.model.source, the adapter from config.seed.
    run = build(config)
    summary = peftjax.summary(run.transform, run.model)
    console.print(f'{summary}\n', highlight=False)
    state, frozen = start(config, run)
    state = run.placement.state(state, run.model)
    frozen = run.placement.frozen(frozen, run.model)
    batches = _train_batches(config, run)
    base = fingerprint((run.model.params, frozen))
    # So that no leaf that moved into the adapter is held beside it.
    run = run._replace(model=without_values(run.model))

    # 2. Where an earlier run of this work folder stopped.
    checkpoints = Checkpoints(workdir, resolved, base)
    scores: dict[str, float] = {}
    if checkpoints.latest_step is not None:
        state, position, scores = checkpoints.restore(state)
        batches.set_state(position)
    done = int(state.step)
    speaks = run.placement.speaks
    if speaks:
        _write_json(workdir / 'config.json', resolved)

    # 3. The loop.
    evaluator = _Evaluator(config, run, frozen, scores)
    with (
        requests_to_stop() as stopped,
        closing(checkpoints),
        closing(MetricsWriter(workdir, resumed_from=done) if speaks else Silence()) as writer,
    ):
        with step_progress(console, total=run.steps, done=done) as progress:
            trace = Trace(workdir / 'profile' if profile else None, start=done + 10)
            state = _loop(
                *(config, run, state, frozen, batches, evaluator, checkpoints),
                *(writer, progress, stopped, trace),
            )
            checkpoints.wait()
            test = evaluator(state.adapter, 'test')
        writer.write(run.steps, test)

    # 4. The results.
    if not speaks:
        return test
    return _results(config, workdir, console, {**test, 'steps': run.steps}, summary, checkpoints)


def _train_batches(config: Config, run: Run) -> grain.DatasetIterator[Any]:
    return data.train_batches(
        run.task.splits['train'],
        batch_size=config.data.batch_size,
        lengths=config.data.lengths,
        seed=config.seed,
        steps=run.steps,
        mine=run.placement.mine(config.data.batch_size),
    )


def _results(
    config: Config,
    workdir: Path,
    console: Console,
    ended: Mapping[str, float],
    summary: peftjax.Summary,
    checkpoints: Checkpoints,
) -> dict[str, float]:
    """Writes and shows what came of a run; `ended` is its test scores and its steps."""
    rows = read_metrics(workdir)
    result = {
        **ended,
        'best_step': checkpoints.best_step,
        'steps_per_second': _median(rows, 'train/steps_per_second'),
        'tokens_per_second': _median(rows, 'train/tokens_per_second'),
        'trainable': summary.trainable,
        'base': summary.base,
        'peak_memory_mib': run_report.peak_memory_mib(),
    }
    _write_json(workdir / 'result.json', result)
    run_report.learning_curve(rows, workdir / 'learning_curve.png')
    console.print(run_report.result_table(config, result))
    console.print(f'curve, metrics and checkpoints: {workdir}', highlight=False)
    return result


def _loop(
    config: Config,
    run: Run,
    state: TrainState,
    frozen: peftjax.Frozen,
    batches: grain.DatasetIterator[Any],
    evaluator: '_Evaluator',
    checkpoints: Checkpoints,
    writer: MetricsWriter | Silence,
    progress: StepProgress,
    stopped: Callable[[], bool],
    trace: Trace,
) -> TrainState:
    pure = make_train_step(run.loss, run.optimizer, accumulate=config.accumulate)
    step, costs = run.placement.step(pure, state), _Costs(pure)
    log_every, eval_every, save_every = (
        steps(every, steps_per_epoch=run.steps_per_epoch, batch_size=config.data.batch_size)
        for every in (config.log_every, config.eval_every, config.save_every)
    )
    machine = machine_here()
    window = StepWindow(machine and machine.flops * run.placement.devices)
    for number, part in enumerate(batches, start=int(state.step) + 1):
        trace.before(number, state)
        batch = run.placement.batch(part.rows, config.data.batch_size)
        cost = costs(state, frozen, batch)
        state, metrics = step(state, frozen, batch)
        window.add(number, metrics, part.tokens, cost)
        log, test, save = (
            is_due(number, every=every, last=run.steps)
            for every in (log_every, eval_every, save_every)
        )
        alone = jax.process_count() == 1
        stop = number < run.steps and (alone or log) and run.placement.agreed(stopped())
        # The window is read before every save too: reading it is what finds a NaN.
        if log or test or save or stop:
            means = window.read()
            writer.write(number, {f'train/{name}': value for name, value in means.items()})
            progress.update(number, _status(means))
        if test:
            scores = evaluator(state.adapter, 'validation')
            writer.write(number, scores)
            progress.say(_line(number, scores))
            window.restart()
        if save or stop:
            checkpoints.save(state, batches.get_state(), evaluator.latest)
            window.restart()
        progress.update(number)
        if stop:
            checkpoints.wait()
            raise Interrupted(f'step {number} of {run.steps}')
    trace.stop(state)
    return state


class _Costs:
    """The products of a step, counted once for each shape of a batch."""

    def __init__(self, step: Callable[..., Any]):
        self._step = step
        self._known: dict[Any, float] = {}

    def __call__(self, *args: Any) -> float:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(args[-1]))
        if shapes not in self._known:
            bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
            self._known[shapes] = flops(self._step, *bare)
        return self._known[shapes]


class _Evaluator:
    """Scores an adapter on a split; compiles once for each batch shape in a run.

    Attributes:
        latest: of the validation split, by name.
    """

    def __init__(self, config: Config, run: Run, frozen: peftjax.Frozen, latest: dict[str, float]):
        self.latest = latest
        self._config = config
        self._run, self._frozen = run, frozen
        self._sums = run.placement.compiled(run.sums)

    def __call__(self, adapter: Any, split: str) -> dict[str, float]:
        size = self._config.data.eval_batch_size
        placement = self._run.placement
        batches = data.eval_batches(
            self._run.task.splits[split],
            batch_size=size,
            lengths=self._config.data.lengths,
            mine=placement.mine(size),
        )
        placed = (placement.batch(rows, size) for rows in batches)
        scores = evaluate(lambda batch: self._sums(adapter, self._frozen, batch), placed)
        named = {f'{split}/{name}': value for name, value in scores.items()}
        if split == 'validation':
            self.latest = named
        return named


def _status(means: Mapping[str, float]) -> str:
    return f'loss {means["loss"]:.4f}  {means["tokens_per_second"]:,.0f} tokens/s'


def _line(step: int, scores: Mapping[str, float]) -> str:
    return f'step {step}: ' + '  '.join(f'{name} {value:.4f}' for name, value in scores.items())


def _median(rows: Iterable[Mapping[str, float]], name: str) -> float:
    # The median leaves the windows out in which a program was compiled.
    return float(np.median([row[name] for row in rows if name in row]))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2) + '\n')
