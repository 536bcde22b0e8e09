"""The table of methods: every law of the contract runs on every row."""

from tests.rows import additive, core, low_rank, weight_space

METHODS = {**core.ROWS, **additive.ROWS, **low_rank.ROWS, **weight_space.ROWS}
