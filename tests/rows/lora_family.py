"""Rows of LoRA's starts and of AdaLoRA."""

import peftjax
from peftjax.core.paths import Targets
from tests.contract_models import HIDDEN, LAYERS, VOCABULARY, WIDTH
from tests.rows.row import MATRICES, TOKENS, Row
from tests.rows.weight_space import UP, total

_LORA = total(lambda i, o: 2 * (i + o))


def _started(init, targets: Targets = MATRICES, parameters=_LORA, identity=0.0):
    return Row(
        make=lambda targets: peftjax.lora(rank=2, alpha=3, init=init, targets=targets),
        targets=targets,
        fewer_targets=r'layers.*/up',
        parameters=parameters,
        identity=identity,
    )


ROWS = {
    'lora, gaussian': _started('gaussian'),
    # A part of the weight is taken away and added back: exact up to rounding.
    'lora, pissa': _started(
        'pissa', (r'embed', MATRICES), _LORA + 2 * (VOCABULARY + WIDTH), identity=1e-5
    ),
    'lora, olora': _started('olora', identity=1e-5),
    'lora, bias': Row(
        variant=True,
        make=lambda targets: peftjax.lora(rank=2, alpha=3, bias=True, targets=targets),
        targets=MATRICES,
        fewer_targets=r'layers.*/up',
        parameters=total(lambda i, o: 2 * (i + o) + o),
    ),
    # The base lacks its smallest singular values.
    'kasa': Row(
        make=lambda targets: peftjax.kasa(rank=2, alpha=3, dropout=0.1, targets=targets),
        targets=MATRICES,
        fewer_targets=r'layers.*/up',
        parameters=total(lambda i, o: 2 * (i + o + 1)),
        identity=None,
        forward_flops=total(lambda i, o: 4 * TOKENS * (i + o) + 2 * TOKENS + TOKENS * o + 2),
    ),
    # The base that it quantises is near what it was, and not the same.
    'loftq': Row(
        make=lambda targets: peftjax.loftq(rank=2, alpha=3, dropout=0.1, targets=targets),
        targets=MATRICES,
        fewer_targets=r'layers.*/up',
        parameters=_LORA,
        identity=None,
        forward_flops=2 * TOKENS * _LORA + total(lambda i, o: 2 * TOKENS * o),
    ),
    'adalora': Row(
        make=lambda targets: peftjax.adalora(init_rank=2, dropout=0.1, targets=targets),
        targets=MATRICES,
        fewer_targets=r'layers.*/up',
        parameters=total(lambda i, o: 2 * (i + o + 1)),
        forward_flops=total(lambda i, o: 4 * TOKENS * (i + o) + TOKENS * o + 2 * (o + 1)),
    ),
    'adalora on a tied embedding': Row(
        variant=True,
        make=lambda targets: peftjax.adalora(init_rank=2, targets=targets),
        targets=(r'embed', r'layers.*/up'),
        fewer_targets=r'embed',
        parameters=LAYERS * 2 * (WIDTH + HIDDEN + 1) + 2 * (VOCABULARY + WIDTH + 1),
    ),
    'delora': Row(
        make=lambda targets: peftjax.delora(rank=2, strength=1.0, dropout=0.1, targets=targets),
        targets=(r'embed', MATRICES),
        fewer_targets=UP,
        parameters=total(lambda i, o: 2 * (i + o) + 1) + 2 * (VOCABULARY + WIDTH) + 1,
    ),
    'vb-lora': Row(
        make=lambda targets: peftjax.vblora(
            rank=2, num_vectors=5, vector_length=4, dropout=0.1, targets=targets
        ),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=5 * 4 + total(lambda i, o: 5 * 2 * (i + o) // 4),
        identity=1e-2,  # Neither bank nor logits start at zero.
    ),
}
