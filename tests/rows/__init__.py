"""The table of methods: every law of the contract runs on every row."""

from tests.rows import additive, core, hadamard_kronecker, low_rank, weight_space

METHODS = {
    **core.ROWS,
    **additive.ROWS,
    **hadamard_kronecker.ROWS,
    **low_rank.ROWS,
    **weight_space.ROWS,
}
