"""The studies by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.studies import claims, cost, cost_report, rates, rates_report
from experiments.studies.few_examples import report as few_examples_report
from experiments.studies.few_examples import reviews as few_reviews
from experiments.studies.few_examples import study as few_examples_study
from experiments.studies.forgetting import report as forgetting_report
from experiments.studies.forgetting import study as forgetting_study
from experiments.studies.intrinsic import (
    images,
    images_report,
    language,
    language_report,
)
from experiments.studies.results import read
from peftjax.train.files import write_whole


class Study(NamedTuple):
    """A study: its protocol, its runs and its report.

    Attributes:
        title: of its section.
        about: the module whose docstring describes models, data and differences.
        protocol: of the kept results.
        tiny: a protocol that ends in seconds.
        run: makes the missing rows of a folder.
        report: with `claims(rows)`, `text(rows)`, `draw(rows, path)` and `CAPTION`.
    """

    title: str
    about: Any
    protocol: Any
    tiny: Any
    run: Callable[[Path, Any], object]
    report: Any

    def reproduce(self, folder: Path) -> str:
        """Runs the study into a folder, draws its figure there, and returns its results as text."""
        self.run(folder, self.protocol)
        rows = read(folder / 'results.jsonl')
        self.report.draw(rows, folder / 'figure.png')
        said = claims.table(self.report.claims(rows)) + '\n' + self.report.text(rows)
        write_whole(folder / 'results.md', said)
        return said


def _study(title: str, module: Any, report: Any) -> Study:
    return Study(title, module, module.Protocol(), module.TINY, module.run, report)


STUDIES = {
    'intrinsic_images': _study(
        'The intrinsic dimension of networks on images', images, images_report
    ),
    'intrinsic_language': _study(
        'The intrinsic dimension of language models', language, language_report
    ),
    'few_examples': _study(
        'Few examples: questions', few_examples_study, few_examples_report.QUESTIONS
    ),
    'few_reviews': Study(
        'Few examples: film reviews',
        few_reviews,
        few_reviews.PROTOCOL,
        few_reviews.TINY,
        few_examples_study.run,
        few_examples_report.REVIEWS,
    ),
    'forgetting': _study('Learning and forgetting', forgetting_study, forgetting_report),
    'rates': _study('The best rate of LoRA', rates, rates_report),
    'cost': _study('What methods cost', cost, cost_report),
}


def find_study(name: str) -> Study:
    """The study of a name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in STUDIES:
        known = ', '.join(f'study.{each}' for each in STUDIES)
        raise ValueError(f'there is no study {name!r}; write one of {known}')
    return STUDIES[name]
