"""Rows of methods that train chosen entries of the base, or move it in a subspace."""

import peftjax
from tests.contract_models import HIDDEN, WIDTH
from tests.rows.row import MATRICES, Row
from tests.rows.weight_space import UP, total

_NORMS = r'layers.*/norm/(scale|bias)'


def _fish(targets, model):
    """Three entries of each matrix."""
    places = {}
    for site in model.sites.match_weights(targets):
        layers = site.layout.stack_shape[0] if site.layout.stack else 1
        size = site.layout.inputs * site.layout.outputs
        places[site.path] = [layer * size + place for layer in range(layers) for place in (6, 0, 3)]
    return peftjax.fish_mask(places)


ROWS = {
    'intrinsic': Row(
        make=lambda targets: peftjax.intrinsic(dimension=20, targets=targets),
        targets=r'.*',
        fewer_targets=None,  # One vector for all targets.
        parameters=20,
        dense=True,
    ),
    'intrinsic, structure-aware': Row(
        variant=True,
        make=lambda targets: peftjax.intrinsic(dimension=20, structure_aware=True, targets=targets),
        targets=r'layers.*/(up|down)/.*',
        fewer_targets=None,
        parameters=20,
        dense=True,
    ),
    'trainable tokens': Row(
        make=lambda targets: peftjax.trainable_tokens([2, 5, 3], targets=targets),
        targets=r'embed/embedding',
        fewer_targets=None,  # There is one embedding.
        parameters=3 * WIDTH,
        dense=True,  # The tied head's gradient is.
    ),
    'top layers': Row(
        make=lambda targets: peftjax.top_layers(1, targets=targets),
        targets=(r'layers.*/kernel', _NORMS),
        fewer_targets=r'layers.*/up/kernel',
        parameters=4 * WIDTH**2 + 2 * WIDTH * HIDDEN + 2 * WIDTH,
        dense=True,
    ),
    'diff pruning': Row(
        # Gates that are neither open nor closed, where their gradient is not zero.
        make=lambda targets: peftjax.diff_pruning(alpha_init=0.3, targets=targets),
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 2 * i * o),
        dense=True,
    ),
    'fish mask': Row(
        of_model=True,
        make=_fish,
        targets=MATRICES,
        fewer_targets=UP,
        parameters=total(lambda i, o: 3),
        dense=True,  # The gradient of the leaf is, and three numbers are taken out of it.
    ),
}
