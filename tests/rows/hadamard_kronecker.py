"""Rows of methods that change a matrix block by block."""

import peftjax
from tests.rows.row import MATRICES, Row
from tests.rows.weight_space import UP, total

ROWS = {
    'gralora': Row(
        make=lambda targets: peftjax.gralora(rank=4, alpha=6, dropout=0.1, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 4 * (i + o)),
    ),
    'gralora, hybrid': Row(
        variant=True,
        make=lambda targets: peftjax.gralora(rank=2, hybrid_rank=1, alpha=6, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 3 * (i + o)),
    ),
    'miss, block affine': Row(
        variant=True,
        make=lambda targets: peftjax.miss(rank=4, bat=True, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 4 * o),
        dense=True,
        forward_flops=total(lambda i, o: 2 * 4 * i * o + 2 * i * o),
    ),
}
