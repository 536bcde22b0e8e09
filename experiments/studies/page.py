"""The part of REPRODUCTIONS.md that is made from the kept results of the studies, with figures."""

import inspect
from collections.abc import Mapping
from pathlib import Path

from experiments.studies import claims
from experiments.studies.registry import STUDIES, Study
from experiments.studies.results import read
from peftjax.train.files import write_whole

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'REPRODUCTIONS.md'
KEPT = ROOT / 'docs' / 'studies'
_BEGIN = '<!-- {}: written by `python -m experiments.studies`, do not edit. -->\n'
_END = '<!-- {}: until here. -->\n'


def write() -> None:
    """Draws every figure, and rewrites the generated parts of the page."""
    for name, study in STUDIES.items():
        study.report.draw(read(KEPT / name / 'results.jsonl'), KEPT / name / 'figure.png')
    text = PAGE.read_text(encoding='utf-8')
    write_whole(PAGE, with_studies(text))


def with_studies(text: str) -> str:
    """The page with new text between its marks: the claims, and a section for each study.

    Raises:
        ValueError: a mark is missing.
    """
    rows = {name: read(KEPT / name / 'results.jsonl') for name in STUDIES}
    sections = [_section(name, study, rows[name]) for name, study in STUDIES.items()]
    text = _between(text, 'claims', _claims(rows))
    return _between(text, 'studies', '\n'.join(sections))


def _between(text: str, name: str, said: str) -> str:
    begin, end = _BEGIN.format(name), _END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f'the page needs exactly one line {begin!r} and, below it, one {end!r}')
    before, _, rest = text.partition(begin)
    return before + begin + '\n' + said + '\n' + end + rest.partition(end)[2]


def _claims(rows: Mapping[str, list]) -> str:
    found = [each for name, study in STUDIES.items() for each in study.report.claims(rows[name])]
    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in _VERDICTS}
    head = (
        f'{len(found)} published claims, each with the effect that was measured here: '
        + ', '.join(f'{count} {verdict}' for verdict, count in counts.items())
        + '. Intervals are of 95 %, by Student over seeds unless something else is said. A verdict '
        'follows from the interval by a rule in the code of its study. The sections at the end of '
        'this page have figures, protocols and commands.\n'
    )
    return head + '\n' + claims.table(found)


_VERDICTS = ('confirmed', 'contradicted', 'not decidable here')


def _section(name: str, study: Study, rows: list) -> str:
    about = inspect.getdoc(study.about)
    assert about is not None
    question, *rest = about.split('\n\n')
    details = [block for block in rest if not block.lstrip().startswith('peftjax reproduce')]
    return '\n\n'.join(
        [
            f'## {study.title}',
            question,
            *(_lines(block) for block in details),
            f'![{study.title}](docs/studies/{name}/figure.png)',
            f'*{study.report.CAPTION}*',
            study.report.text(rows).strip(),
            f'[Rows](docs/studies/{name}/results.jsonl), '
            f'[protocol](docs/studies/{name}/protocol.json). Again, from nothing:',
            f'```\npeftjax reproduce study.{name} --workdir runs/{name}\n```\n',
        ]
    )


def _lines(block: str) -> str:
    """The entries `Name: text` of a docstring as a list."""
    entries: list[str] = []
    for line in block.splitlines():
        if line.startswith(' ') and entries:
            entries[-1] += ' ' + line.strip()
        else:
            entries.append(line.strip())
    return '\n'.join(f'- {entry}' for entry in entries)
