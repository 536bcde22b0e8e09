"""Rows of methods that change a matrix by products, blocks and rotations."""

import peftjax
from tests.contract_models import HIDDEN, LAYERS, WIDTH
from tests.rows.row import MATRICES, TOKENS, Row

UP = r'layers.*/up'
SIDES = 2 * [(WIDTH, WIDTH)] + [(WIDTH, HIDDEN), (HIDDEN, WIDTH)]


def total(formula):
    """`formula(in, out)` over the matrices of the contract's model."""
    return LAYERS * sum(formula(inputs, outputs) for inputs, outputs in SIDES)


ROWS = {
    'loha': Row(
        make=lambda targets: peftjax.loha(rank=2, alpha=3, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        dense=True,
        parameters=total(lambda i, o: 2 * 2 * (i + o)),
        forward_flops=total(lambda i, o: (8 + 2) * i * o + 2 * TOKENS * i * o + TOKENS * o),
    ),
    'hira': Row(
        make=lambda targets: peftjax.hira(rank=2, dropout=0.1, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        dense=True,
        parameters=total(lambda i, o: 2 * (i + o)),
        forward_flops=total(lambda i, o: (4 + 1) * i * o + 2 * TOKENS * i * o + TOKENS * o),
    ),
    'hra': Row(
        make=lambda targets: peftjax.hra(rank=4, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 4 * i),
    ),
    'hra with gram-schmidt': Row(
        variant=True,
        make=lambda targets: peftjax.hra(rank=3, gram_schmidt=True, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 3 * i),
        identity=None,  # Reflections along vectors drawn apart do not cancel.
    ),
    'oft': Row(
        make=lambda targets: peftjax.oft(block_size=4, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: i // 4 * 6),
    ),
    'oft shared': Row(
        variant=True,
        make=lambda targets: peftjax.oft(block_size=4, block_share=True, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 6),
    ),
    'c3a': Row(
        make=lambda targets: peftjax.c3a(block_size=4, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: i * o // 4),
    ),
    'miss': Row(
        make=lambda targets: peftjax.miss(rank=3, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 3 * o),
    ),
    'miss, columns shared': Row(
        variant=True,
        make=lambda targets: peftjax.miss(rank=2, mini_rank=4, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 2 * 4),
    ),
    'lokr': Row(
        make=lambda targets: peftjax.lokr(rank=1, alpha=2, factor=2, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 4 + i // 2 + o // 2),
    ),
    'lokr, both factored': Row(
        variant=True,
        make=lambda targets: peftjax.lokr(rank=1, decompose_both=True, factor=4, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 8 + (i // 4 * o // 4 if max(i, o) < 12 else (i + o) // 4)),
    ),
    'vera': Row(
        make=lambda targets: peftjax.vera(rank=3, targets=targets),
        targets=(r'embed', MATRICES),
        fewer_targets=UP,
        parameters=total(lambda i, o: 3 + o) + 3 + WIDTH,
    ),
    'fourierft': Row(
        make=lambda targets: peftjax.fourierft(n_frequency=6, scaling=2.0, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        dense=True,
        parameters=total(lambda i, o: 6),
        identity=None,  # The paper draws the coefficients from a normal.
    ),
    'shira': Row(
        make=lambda targets: peftjax.shira(rank=1, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: i + o),
    ),
    'lora-fa': Row(
        make=lambda targets: peftjax.lora_fa(rank=2, alpha=4, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 2 * o),
        forward_flops=total(lambda i, o: 2 * TOKENS * 2 * (i + o) + 2 * TOKENS * o),
    ),
}
