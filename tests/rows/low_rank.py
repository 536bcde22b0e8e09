"""Rows of LoRA's relatives."""

import peftjax
from tests.contract_models import HIDDEN, LAYERS, VOCABULARY, WIDTH
from tests.rows.row import MATRICES, TOKENS, Row
from tests.rows.weight_space import total

ROWS = {
    'dora': Row(
        make=lambda targets: peftjax.dora(rank=2, alpha=4, targets=targets),
        targets=MATRICES,
        fewer_targets=r'layers.*/up',
        parameters=total(lambda i, o: 2 * (i + o) + o),
        forward_flops=total(
            lambda i, o: (
                2 * TOKENS * 2 * (i + o)
                + 3 * TOKENS * o
                + 2 * 2 * i * (o + 2)
                + 2 * 4 * o
                + 2 * i * o
                + 6 * 2 * o
            )
        ),
    ),
    'dora on a tied embedding': Row(
        variant=True,
        make=lambda targets: peftjax.dora(rank=2, targets=targets),
        targets=(r'embed', r'layers.*/up'),
        fewer_targets=r'embed',
        parameters=LAYERS * (2 * (WIDTH + HIDDEN) + HIDDEN) + 2 * (VOCABULARY + WIDTH) + WIDTH,
    ),
}
