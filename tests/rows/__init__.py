"""The table of methods: every law of the contract runs on every row."""

from tests.rows import additive, core

METHODS = {**core.ROWS, **additive.ROWS}
