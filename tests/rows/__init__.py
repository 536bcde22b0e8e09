"""The table of methods: every law of the contract runs on every row."""

from tests.rows import (
    additive,
    core,
    hadamard_kronecker,
    lora_family,
    low_rank,
    rotations,
    selective,
    weight_space,
)

METHODS = {
    **core.ROWS,
    **additive.ROWS,
    **low_rank.ROWS,
    **lora_family.ROWS,
    **weight_space.ROWS,
    **hadamard_kronecker.ROWS,
    **rotations.ROWS,
    **selective.ROWS,
}
