"""Rows of the methods that came with the core: LoRA, selection, a bottleneck."""

import jax.numpy as jnp

import peftjax
from tests.contract_models import HIDDEN, LAYERS, VOCABULARY, WIDTH
from tests.rows.row import MATRICES, TOKENS, Row


def _scale_outputs(targets):
    """A method of one's own, without a route for training: the merged matrix is formed."""
    return peftjax.weightwise(
        lambda key, matrix, site: {'scale': jnp.ones(matrix.shape[1])},
        lambda leaves, matrix: matrix * leaves['scale'][None],
        targets=targets,
        name='scale_outputs',
    )


def _lora_parameters(rank):
    return LAYERS * rank * (2 * 2 * WIDTH + 2 * (WIDTH + HIDDEN))


_BIASES = LAYERS * (4 * WIDTH + WIDTH + HIDDEN + WIDTH)
_BASE = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN + WIDTH) + _BIASES + VOCABULARY * WIDTH

ROWS = {
    'lora': Row(
        make=lambda targets: peftjax.lora(rank=2, alpha=4, dropout=0.1, targets=targets),
        targets=MATRICES,
        fewer_targets=r'layers.*/up',
        parameters=_lora_parameters(2),
        # Two products of 2 T r (in + out) in all, and scaling and adding the result.
        forward_flops=2 * TOKENS * _lora_parameters(2) + 2 * TOKENS * LAYERS * (3 * 8 + 16),
    ),
    'lora on a tied embedding': Row(
        make=lambda targets: peftjax.lora(rank=2, targets=targets),
        targets=(r'embed', MATRICES),
        fewer_targets=r'embed',
        parameters=_lora_parameters(2) + 2 * (VOCABULARY + WIDTH),
    ),
    'rslora with patterns': Row(
        variant=True,
        make=lambda targets: peftjax.lora(
            rank=4,
            rslora=True,
            targets=targets,
            rank_pattern={r'.*/down': 3},
            alpha_pattern={r'.*/down/kernel': 9},
        ),
        targets=r'layers.*/(up|down)',
        fewer_targets=r'layers.*/down',
        parameters=LAYERS * (4 + 3) * (WIDTH + HIDDEN),
    ),
    'bitfit': Row(
        make=lambda targets: peftjax.select(targets),
        targets=r'.*/bias',
        fewer_targets=r'.*/up/bias',
        parameters=_BIASES,
    ),
    'full': Row(
        make=lambda targets: peftjax.select(targets),
        targets=r'.*',
        fewer_targets=r'.*/kernel',
        dense=True,
        parameters=_BASE,
    ),
    'bottleneck': Row(
        make=lambda targets: peftjax.bottleneck(size=3, targets=targets),
        targets=r'layers.*/(attention|down)',
        fewer_targets=r'layers.*/attention',
        parameters=LAYERS * 2 * (2 * WIDTH * 3 + 3 + WIDTH),
        identity=1e-2,  # Houlsby et al. start near the identity, not at it.
        mergeable=False,
    ),
    'weightwise without a route': Row(
        variant=True,
        make=_scale_outputs,
        targets=r'layers.*/(up|down)',
        fewer_targets=r'layers.*/up',
        dense=True,
        parameters=LAYERS * (HIDDEN + WIDTH),
    ),
}
