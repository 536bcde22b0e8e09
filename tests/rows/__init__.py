"""The table of methods: every law of the contract runs on every row."""

from tests.rows import core, lora_family, low_rank, weight_space

METHODS = {**core.ROWS, **low_rank.ROWS, **lora_family.ROWS, **weight_space.ROWS}
