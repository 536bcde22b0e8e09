"""Prints the page of the binding's structures: `python -m tests.structures > docs/binding.md`."""

import sys

from tests.structures import TABLE
from tests.structures.page import page

sys.stdout.write(page(TABLE))
