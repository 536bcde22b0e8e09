"""The tables of what the binding adapts, from the structures that the tests check."""

from tests.structures import TABLE
from tests.structures.entry import Structure

FLAVOURS = {'linen': 'Flax Linen', 'nnx': 'Flax NNX', 'function': 'Plain functions'}


def tables() -> str:
    """How many structures there are, and a table of each flavour."""
    parts = [f'{len(TABLE)} structures.\n']
    for flavour, title in FLAVOURS.items():
        rows = [row for row in TABLE if row.flavour == flavour]
        parts.append(f'## {title}: {len(rows)}\n')
        parts.append('| structure | adapted | refused: why |\n| --- | --- | --- |')
        parts[-1] = '\n'.join([parts[-1], *map(_line, rows)]) + '\n'
    return '\n'.join(parts)


def _line(row: Structure) -> str:
    adapted = ', '.join(f'`{path}`' for path in sorted(row.adapted)) or 'none'
    refused = ', '.join(f'`{path}`: {why}' for path, why in sorted(row.refused.items()))
    return f'| {row.name.replace("_", " ")} | {adapted} | {refused} |'
