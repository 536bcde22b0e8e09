"""Counts the trained parameters in published tables, by methods of peftjax on abstract models.

python -m benchmarks.paper_counts          # every row, our number and theirs
python -m benchmarks.paper_counts --write  # writes the rows that differ into benchmarks/README.md

Nothing is allocated, even for GPT-3. paper_counts.json holds the published numbers. Its rows under
`do_not_reproduce` have numbers that do not follow from the descriptions in their papers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import app

import peftjax
from benchmarks import options, report
from benchmarks.published.methods import transform_of
from benchmarks.published.places import Row, model_of

FILE = Path(__file__).with_name('paper_counts.json')


class Count(NamedTuple):
    """A row and our count; None if peftjax does not have the method."""

    row: Row
    ours: int | None

    @property
    def equal(self) -> bool:
        return self.ours == self.row['computed_trainable']


def count(row: Row) -> Count:
    """The trained parameters of a row's method on its model, by `peftjax.summary`."""
    transform = transform_of(row)
    if transform is None:
        return Count(row, None)
    found = peftjax.summary(transform, model_of(row))
    if row['paper'].startswith('MAM'):  # it counts adapters without their biases
        rows = (each for each in found.leaves if not each[0].endswith('_bias'))
        return Count(row, sum(each[3] for each in rows))
    return Count(row, found.trainable)


def read() -> dict[str, list[Row]]:
    """The rows of paper_counts.json: `reproduce` and `do_not_reproduce`."""
    return json.loads(FILE.read_text(encoding='utf-8'))


def table(counts: Sequence[Count]) -> list[tuple[str, ...]]:
    """Rows to print: our count, the count by the paper's description, and the printed one."""
    head = ('paper', 'method', 'model', 'ours', 'by its formula', 'printed')
    return [
        head,
        *(
            (
                row['paper'],
                row['method'],
                row['model']['name'],
                'no method' if ours is None else f'{ours:,}',
                f'{row["computed_trainable"]:,}',
                row['published_trainable'],
            )
            for row, ours in counts
        ),
    ]


def main(argv: Sequence[str]) -> None:
    del argv
    found = {name: [count(row) for row in rows] for name, rows in read().items()}
    for name, counts in found.items():
        print(f'{name}\n{report.plain(table(counts))}')
    lines = [
        f'`{name}`: {len(counts)} rows, {sum(each.equal for each in counts)} equal, '
        f'{sum(each.ours is None for each in counts)} without a method here.'
        for name, counts in found.items()
    ]
    print('\n'.join(lines))
    if options.WRITE.value:
        differing = [each for counts in found.values() for each in counts if not each.equal]
        printed = report.markdown(table(found['do_not_reproduce']))
        report.write_section(
            'counts',
            '\n\n'.join(
                [
                    '\n'.join(f'- {line}' for line in lines),
                    'Not equal to the formula of their papers:',
                    report.markdown(table(differing)),
                    'Printed numbers that the papers do not explain, beside ours:',
                    printed,
                ]
            ),
        )


if __name__ == '__main__':
    app.run(main)
