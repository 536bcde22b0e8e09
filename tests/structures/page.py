"""The table of structures as a Markdown page."""

from collections.abc import Sequence

from tests.structures.entry import Structure

FLAVOURS = {'linen': 'Flax Linen', 'nnx': 'Flax NNX', 'function': 'Plain functions'}

HEAD = """\
# What the binding can adapt

Written by `python -m tests.structures > docs/binding.md`; do not edit. `tests/test_binding.py`
checks every row on a small model: the sites found are exactly these; a fresh LoRA changes nothing;
adapted equals merged, in values, in derivatives by the adapter, and in the state that the model
hands back, under `jit`; targeting a refused leaf raises with its path and reason, and with
`materialize=True` its merged weight is used instead.

A refused leaf cannot carry a weight adapter, but `select` trains any of them as it stands. The
reasons below are the words that the error contains.
"""


def page(table: Sequence[Structure]) -> str:
    """The whole page."""
    parts = [HEAD, f'{len(table)} structures.\n']
    for flavour, title in FLAVOURS.items():
        rows = [row for row in table if row.flavour == flavour]
        parts.append(f'## {title}: {len(rows)}\n')
        parts.append('| structure | adapted | refused: why |\n| --- | --- | --- |')
        parts[-1] = '\n'.join([parts[-1], *map(_line, rows)]) + '\n'
    return '\n'.join(parts)


def _line(row: Structure) -> str:
    adapted = ', '.join(f'`{path}`' for path in sorted(row.adapted)) or 'none'
    refused = ', '.join(f'`{path}`: {why}' for path, why in sorted(row.refused.items()))
    return f'| {row.name.replace("_", " ")} | {adapted} | {refused} |'
