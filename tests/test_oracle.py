"""The committed reference adapters: our logits, loss and gradients are theirs."""

import pytest

from tests.oracle.cases import GOLDEN, compare, read_case
from tests.oracle.converters import CONVERTERS

FOLDERS = sorted(path.parent for path in GOLDEN.rglob('adapter_config.json'))


@pytest.mark.parametrize(
    'folder', FOLDERS, ids=[folder.relative_to(GOLDEN).as_posix() for folder in FOLDERS]
)
def test_reference_adapter(folder):
    case = read_case(folder)
    # Tests run unoptimised machine code, whose sums round otherwise: python -m tests.oracle, which
    # does not, holds the same cases to 1e-5.
    compare(case, CONVERTERS[case.method](case), tolerance=3e-5)
