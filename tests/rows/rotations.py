"""Rows of methods that turn a matrix, and of changes from frozen random factors."""

import peftjax
from tests.rows.row import MATRICES, Row
from tests.rows.weight_space import UP, total

ROWS = {
    'boft': Row(
        make=lambda targets: peftjax.boft(block_size=2, factors=2, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 2 * i // 2 + o),
    ),
    'boft, whole blocks': Row(
        variant=True,
        make=lambda targets: peftjax.boft(
            block_size=4, whole_blocks=True, scale=False, targets=targets
        ),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 4 * i),
    ),
    'oft, bounded, by a series': Row(
        variant=True,
        make=lambda targets: peftjax.oft(block_size=4, neumann_terms=9, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: i // 4 * 6),
    ),
    'randlora': Row(
        make=lambda targets: peftjax.randlora(rank=3, alpha=3, dropout=0.1, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 3 * (3 + min(i, o))),
    ),
    'randlora, sparse': Row(
        variant=True,
        make=lambda targets: peftjax.randlora(rank=4, alpha=4, sparsity=3, targets=targets),
        targets=(r'embed', MATRICES),
        fewer_targets=UP,
        parameters=total(lambda i, o: 2 * (4 + min(i, o))) + 2 * (4 + 8),
    ),
    'road': Row(
        make=lambda targets: peftjax.road(variant=1, group_size=4, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: o),
    ),
    'road, four numbers a pair': Row(
        variant=True,
        make=lambda targets: peftjax.road(variant=4, group_size=8, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 4 * o),
    ),
    'psoft': Row(
        of_model=True,
        make=lambda targets, model: peftjax.psoft(
            peftjax.principal_subspaces(model, rank=3, targets=targets)
        ),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 3 + 2 * 3),
    ),
    'psoft, by a series': Row(
        variant=True,
        of_model=True,
        make=lambda targets, model: peftjax.psoft(
            peftjax.principal_subspaces(model, rank=4, targets=targets),
            scale=False,
            neumann_terms=5,
            dropout=0.1,
        ),
        targets=(r'embed', MATRICES),
        fewer_targets=UP,
        parameters=total(lambda i, o: 6) + 6,
    ),
}
