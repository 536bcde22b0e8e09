"""Rows of the methods that add a trained network, vector or edit to activations."""

import peftjax
from tests.contract_models import HIDDEN, LAYERS, WIDTH
from tests.rows.row import TOKENS, Row

_SUBLAYERS = r'layers.*/(attention|down)'
_ONE = r'layers.*/attention'
_BLOCKS = r'layers([_/]\d+)?'

ROWS = {
    'houlsby': Row(
        make=lambda targets: peftjax.houlsby(size=3, targets=targets),
        targets=_SUBLAYERS,
        fewer_targets=_ONE,
        parameters=LAYERS * 2 * (2 * WIDTH * 3 + 3 + WIDTH),
        identity=1e-2,  # Houlsby et al. start near the identity, not at it.
        mergeable=False,
    ),
    'parallel adapter': Row(
        make=lambda targets: peftjax.parallel_adapter(size=3, scale='learned', targets=targets),
        targets=r'layers.*/(attention|down)',
        fewer_targets=r'layers.*/down',
        parameters=LAYERS * (2 * WIDTH * 3 + (HIDDEN + WIDTH) * 3 + 2 * (3 + WIDTH + 1)),
        mergeable=False,
    ),
    'bottleneck with gate and norms': Row(
        variant=True,
        make=lambda targets: peftjax.bottleneck(
            size=3,
            targets=targets,
            activation='gelu',
            init='mam',
            norm_before=True,
            norm_after=True,
            gate=True,
        ),
        targets=_SUBLAYERS,
        fewer_targets=_ONE,
        parameters=LAYERS * 2 * (2 * WIDTH * 3 + 3 + WIDTH + WIDTH + 1 + 4 * WIDTH),
        mergeable=False,
    ),
    'compacter': Row(
        make=lambda targets: peftjax.compacter(size=4, terms=2, targets=targets),
        targets=_SUBLAYERS,
        fewer_targets=_ONE,
        parameters=2**3 + LAYERS * 2 * (2 * (WIDTH + 4) + 4 + WIDTH),
        identity=1e-3,  # The shared rule starts near zero, not at it.
        mergeable=False,
    ),
    'phm adapter': Row(
        variant=True,
        make=lambda targets: peftjax.compacter(
            size=4, terms=2, rank=None, shared_rule=False, targets=targets
        ),
        targets=_SUBLAYERS,
        fewer_targets=_ONE,
        parameters=LAYERS * 2 * (2 * (2**3 + 2 * (WIDTH // 2) * 2) + 4 + WIDTH),
        identity=1e-3,
        mergeable=False,
    ),
    'invertible adapter': Row(
        make=lambda targets: peftjax.invertible_adapter(size=3, targets=targets),
        targets=r'embed',
        fewer_targets=None,
        parameters=2 * 3 * WIDTH + 2 * 3 + WIDTH,
        identity=1e-2,  # Its two networks start near zero, not at it.
        mergeable=False,
    ),
    'ia3': Row(
        make=lambda targets: peftjax.ia3(targets=targets, feedforward=r'layers.*/down'),
        targets=r'layers.*/attention/(key|value)',
        fewer_targets=r'layers.*/attention/key',
        parameters=LAYERS * (2 * WIDTH + HIDDEN),
        # One product a number, and the bias once: the paper's count has no matrix product.
        forward_flops=(TOKENS + 1) * LAYERS * (2 * WIDTH + HIDDEN),
    ),
    'loreft': Row(
        make=lambda targets: peftjax.loreft(rank=2, positions='f2+l1', targets=targets),
        targets=_BLOCKS,
        fewer_targets=None,
        parameters=LAYERS * 2 * (2 * WIDTH * 2 + 2),
        identity=None,  # Wu et al. start W and R apart from each other.
        mergeable=False,
    ),
    'noreft': Row(
        variant=True,
        make=lambda targets: peftjax.noreft(rank=2, targets=targets),
        targets=_BLOCKS,
        fewer_targets=None,
        parameters=LAYERS * (2 * WIDTH * 2 + 2),
        identity=None,
        mergeable=False,
    ),
    'direft': Row(
        make=lambda targets: peftjax.direft(rank=2, positions='f1+l2', tied=True, targets=targets),
        targets=_SUBLAYERS,
        fewer_targets=_ONE,
        parameters=LAYERS * 2 * (2 * WIDTH * 2 + 2),
        identity=None,
        mergeable=False,
    ),
    'activated lora': Row(
        make=lambda targets: peftjax.activated(
            peftjax.lora(rank=2, targets=targets), invocation=(6, 7)
        ),
        targets=r'layers.*/(up|down)',
        fewer_targets=r'layers.*/up',
        parameters=LAYERS * 2 * 2 * (WIDTH + HIDDEN),
        mergeable=False,
    ),
    'gated lora': Row(
        make=lambda targets: peftjax.gated(peftjax.lora(rank=2, targets=targets)),
        targets=r'layers.*/(up|down)',
        fewer_targets=r'layers.*/up',
        parameters=LAYERS * (2 * 2 * (WIDTH + HIDDEN) + WIDTH + HIDDEN + 2),
        mergeable=False,
    ),
}
