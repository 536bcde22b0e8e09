"""The training loop, for one run or for many runs in one program."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from peftjax.train.cadence import is_due
from peftjax.train.checkpoints import Checkpoints
from peftjax.train.engine import Engine
from peftjax.train.hooks import Ending, OnStep, Prune, Tell
from peftjax.train.interrupt import Interrupted
from peftjax.train.member import ADAPTER, LAST, Member
from peftjax.train.profile import Trace
from peftjax.train.run import Run
from peftjax.train.scoring import SplitScores
from peftjax.train.window import Bad, NonFiniteError, StepWindow


class Due(NamedTuple):
    """What is due for a run after a step."""

    stop: bool
    log: bool
    score: bool
    save: bool


def _cadences(run: Run) -> tuple[int, int, int]:
    return run.log_every, run.eval_every, run.save_every


class Loop:
    """Trains runs to their ends."""

    def __init__(
        self,
        members: Sequence[Member],
        engine: Engine,
        checkpoints: Checkpoints | None,
        *,
        ending: Ending,
        tell: Tell,
        over: Mapping[int, int] | None = None,
        prune: Prune | None = None,
        on_step: Sequence[OnStep] = (),
        trace: Trace | None = None,
        peak: float | None = None,
        alone: bool = False,
    ):
        """Goes on from the newest checkpoint, if there is one.

        Args:
            members: the runs, by place.
            engine: computes their steps.
            checkpoints: of all runs together; None keeps none.
            ending: called with each run that is over.
            tell: called with the progress of each run.
            over: places of runs that are over, with the steps that they took.
            prune: chooses the runs that stop early.
            on_step: called after every step.
            trace: of the profiler.
            peak: FLOPs that all devices can do in a second, if known.
            alone: whether a loss that is not finite raises; otherwise its run leaves the others.

        Raises:
            ValueError: the checkpoint is of other settings, of another base or of other data.
            CheckpointsError: none of the checkpoints is whole.
        """
        self.members, self.engine, self._checkpoints = members, engine, checkpoints
        self._ending, self._tell, self._prune = ending, tell, prune
        self._on_step, self._trace, self._alone = on_step, trace, alone
        self._batches = engine.batches()
        self.done = 0
        # Runs that are over, with the last step of each. They stay in the program for a while,
        # since a smaller program would have to be compiled.
        self._left: dict[int, int] = dict(over or {})
        if checkpoints is not None and checkpoints.latest_step is not None:
            self._restore(checkpoints)
        engine.leave([place for place, step in self._left.items() if step <= self.done], self.done)
        self._window = StepWindow(len(members), peak)
        for _, member in self._here():
            if self.done < member.run.steps:  # The folder of a finished run is left as it is.
                member.open(self.done)

    def run(self, stopped: Callable[[], bool]) -> None:
        """Takes all remaining steps.

        Args:
            stopped: says whether the run was asked to stop.

        Raises:
            Interrupted: the run was asked to stop; its state was saved.
            NonFiniteError: the loss of the only run became NaN or infinite. The newest checkpoint
                is from before that step.
            CheckpointsError: a checkpoint could not be written.
        """
        if not self._here():
            return
        for number, part in enumerate(self._batches, start=self.done + 1):
            if self._trace is not None:
                self._trace.before(self.engine.state(0))
            self._take_step(number, part)
            due = self._due(number, stopped)
            # A run that ended before the newest checkpoint leaves when its step has come again.
            ended = [place for place, step in self._left.items() if step == number]
            if any(map(any, due.values())) or ended:
                self._stop_some(number, due, ended)
            if not self._here():
                break
        if self._trace is not None:
            self._trace.stop(self.engine.state(0))
        self._wait()

    def _take_step(self, number: int, part: Any) -> None:
        parts = self.engine.step(part.rows)
        flops = self.engine.flops()
        self._window.add(number, parts, self.engine.tokens(part.tokens), flops)
        for place, member in self._here():
            member.products += self.engine.flops(place)
        for call in self._on_step:
            for _, metrics in parts:
                call(number, metrics)

    def _due(self, number: int, stopped: Callable[[], bool]) -> dict[int, Due]:
        """What is due for each run that trains."""
        here = self._here()
        several = jax.process_count() > 1
        # If there are several processes, all ask at the same step.
        log = any(is_due(number, every=m.run.log_every, last=m.run.steps) for _, m in here)
        ended = all(number == member.run.steps for _, member in here)
        stop = not ended and (log or not several) and self.engine.placement.agreed(stopped())
        return {
            place: Due(stop, *(is_due(number, every=n, last=run.steps) for n in _cadences(run)))
            for place, run in ((place, member.run) for place, member in here)
        }

    def _stop_some(self, number: int, due: Mapping[int, Due], ended: Sequence[int]) -> None:
        """Logs, scores, ends and saves what is due after a step."""
        # The metrics of a run are read before it is saved, since reading them finds a NaN.
        read = [place for place, each in due.items() if any(each)]
        bad = {place: self._log(number, place) for place in read}
        scored = [p for p in read if due[p].score and bad[p] is None]
        self._evaluate(number, scored)
        over = [p for p in read if self.members[p].run.steps == number and bad[p] is None]
        self._finish(number, over)
        for place in read:
            found = bad[place]
            if found is not None:
                self._end(place, number, {'status': 'diverged', 'diverged_at': found.step})
        rivals = [p for p in scored if p not in over]
        pruned = self._stopped_early(number, rivals)
        gone = [p for p in read if p in over or p in pruned or bad[p] is not None]
        self._left.update(dict.fromkeys(gone, number))
        self.engine.leave([*gone, *ended], number)
        stop = any(each.stop for each in due.values())
        if stop or any(each.save for each in due.values()) or not self._here():
            self._save(number)
        self._window.go_on([place for place, _ in self._here()])
        if stop and self._here():
            self._wait()
            steps = max(member.run.steps for _, member in self._here())
            raise Interrupted(f'step {number} of {steps}')

    def _here(self) -> list[tuple[int, Member]]:
        """The runs that train, by place."""
        return [(p, member) for p, member in enumerate(self.members) if p not in self._left]

    def _log(self, number: int, place: int) -> Bad | None:
        """Writes a run's means; returns its first step that is not finite, if there is one."""
        member = self.members[place]
        means, bad = self._window.read(place)
        if bad is None:
            member.write(number, {f'train/{name}': value for name, value in means.items()})
            self._tell(member.name, {'status': 'training', 'step': number, **means})
        elif self._alone:
            raise NonFiniteError(
                f'step {bad.step}: loss {bad.loss}, gradient norm {bad.grad_norm}. The newest '
                'checkpoint is from before that step; a lower learning rate often helps, for '
                'example --lr 1e-4'
            )
        return bad

    def _evaluate(self, number: int, places: Sequence[int]) -> None:
        found = self._scored(places, 'validation')
        if not found:
            return
        for place in places:
            member = self.members[place]
            scores = self._scores(place, found)
            member.write(number, scores)
            member.evaluated(number, scores, self.engine.state(place).adapter)
            self._tell(member.name, {'step': number, **scores})

    def _scored(
        self,
        places: Sequence[int],
        kind: str,
        adapters: Mapping[int, Any] = MappingProxyType({}),
    ) -> dict[str, SplitScores]:
        """The scores of runs on the splits of a kind: 'test', and any 'test_...' beside it."""
        splits = self.members[places[0]].run.task.splits if places else {}
        names = [name for name in splits if f'{name}_'.startswith(f'{kind}_')]
        return {name: self.engine.score(name, adapters) for name in names if splits[name]}

    def _scores(
        self, place: int, found: Mapping[str, SplitScores], adapter: Any = None
    ) -> dict[str, float]:
        run, made = self.members[place].run, {}
        for split, scored in found.items():
            scores = dict(scored.scores(place))
            if run.evaluators:
                trained = self.engine.trained(place)
                trained = trained if adapter is None else trained._replace(adapter=adapter)
                for evaluator in run.evaluators:
                    scores |= evaluator(trained, split)
            made |= {f'{split}/{name}': float(value) for name, value in scores.items()}
        return made

    def _finish(self, number: int, places: Sequence[int]) -> None:
        """Scores runs on the test splits after their last step, and ends them."""
        found = self._scored(places, 'test')
        for place in places:
            member, adapter = self.members[place], self.engine.state(place).adapter
            member.keep(LAST, adapter)
            if member.best is None:
                member.keep(ADAPTER, adapter)
        earlier = self._test_of_best(number, places) if found else {}
        for place in places:
            member = self.members[place]
            test = self._scores(place, found)
            if test:
                member.write(number, test)
            best = earlier.get(place, test)
            kept = {f'best/{name}': value for name, value in best.items()}
            self._end(place, number, {'status': 'done', **test, **kept})

    def _test_of_best(self, number: int, places: Sequence[int]) -> dict[int, dict[str, float]]:
        """Test scores of the best adapters of runs whose best step is not their last."""
        others = {
            place: member.best_written(self.engine.state(place))
            for place in places
            if (member := self.members[place]).best is not None and member.best.step < number
        }
        if not others:
            return {}
        found = self._scored(places, 'test', others)
        return {place: self._scores(place, found, others[place]) for place in others}

    def _stopped_early(self, number: int, places: Sequence[int]) -> list[int]:
        """Stops some of the runs that were just scored; returns their places."""
        if not places or self._prune is None:
            return []
        rivals = [self.members[place] for place in places]
        evaluation = number // rivals[0].run.eval_every
        names = self._prune(number, evaluation, self.members, rivals)
        pruned = [place for place in places if self.members[place].name in names]
        for place in pruned:
            self._end(place, number, {'status': 'pruned'})
        return pruned

    def _end(self, place: int, number: int, known: Mapping[str, Any]) -> None:
        member = self.members[place]
        member.close()
        self._ending(member, self.engine.state(place), number, known)
        self._tell(member.name, {'step': number, **known})

    def _save(self, number: int) -> None:
        if self._checkpoints is None:
            return
        for _, member in self._here():
            member.flush()
        state, about = self.engine.snapshot(number)
        members = [member.about() for member in self.members]
        position = {'data': self._batches.get_state(), 'engine': about, 'members': members}
        self._checkpoints.save(state, position)

    def _restore(self, checkpoints: Checkpoints) -> None:
        restored = checkpoints.restore(self.engine.snapshot(0)[0])
        self.done = int(restored.state.step)
        self.engine.load(restored.state, restored.about['engine'])
        self._batches.set_state(restored.about['data'])
        for member, about in zip(self.members, restored.about['members'], strict=True):
            member.load(about)

    def _wait(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def close(self) -> None:
        """Ends the trackers."""
        for member in self.members:
            member.close()
