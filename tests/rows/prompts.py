"""Rows of methods that add virtual tokens, or a prefix of the key and value cache."""

import peftjax
from tests.contract_models import HIDDEN, LAYERS, WIDTH
from tests.rows.row import Row

_CORES = r'layers.*attention_fn'
_BLOCKS = r'layers.*/down'


def _unipelt(targets):
    return peftjax.unipelt(
        cores=_CORES,
        kernels=targets,
        branches=_BLOCKS,
        num_virtual_tokens=2,
        projection=3,
        rank=2,
        size=3,
        reads='input',
    )


ROWS = {
    'prefix tuning': Row(
        make=lambda targets: peftjax.prefix_tuning(num_virtual_tokens=3, targets=targets),
        targets=_CORES,
        fewer_targets=None,  # Of a scanned model there is one.
        parameters=LAYERS * 2 * 3 * WIDTH,
        identity=None,
        mergeable=False,
    ),
    'prefix tuning, reparametrised': Row(
        variant=True,
        make=lambda targets: peftjax.prefix_tuning(
            num_virtual_tokens=3, projection=5, embedding=4, targets=targets
        ),
        targets=_CORES,
        fewer_targets=None,
        parameters=LAYERS * 2 * (5 + 1) * WIDTH + 3 * 4 + (4 + 1) * 5,
        identity=None,
        mergeable=False,
    ),
    'adaption prompt': Row(
        make=lambda targets: peftjax.adaption_prompt(
            num_virtual_tokens=3,
            key='key',
            value='value',
            targets=targets,
        ),
        targets=_CORES,
        fewer_targets=None,
        parameters=LAYERS * (3 * WIDTH + 1),
        mergeable=False,
    ),
    'prompt tuning': Row(
        make=lambda targets: peftjax.prompt_tuning(
            num_virtual_tokens=3, places=(0, 0, 2), targets=targets
        ),
        targets=r'embed',
        fewer_targets=None,
        parameters=3 * WIDTH,
        identity=None,
        mergeable=False,
    ),
    'p-tuning': Row(
        variant=True,  # What it adds to prompt tuning runs before the model.
        make=lambda targets: peftjax.p_tuning(num_virtual_tokens=3, hidden=5, targets=targets),
        targets=r'embed',
        fewer_targets=None,
        parameters=3 * WIDTH + (WIDTH + 1) * 5 + 6 * 5 + 6 * WIDTH,
        identity=None,
        mergeable=False,
    ),
    'p-tuning, lstm': Row(
        variant=True,
        make=lambda targets: peftjax.p_tuning(
            num_virtual_tokens=3, encoder='lstm', hidden=4, num_layers=2, targets=targets
        ),
        targets=r'embed',
        fewer_targets=None,
        parameters=3 * WIDTH
        + 8 * 4 * (WIDTH + 4 + 2)
        + 8 * 4 * (3 * 4 + 2)
        + (4 * 16 + 2 * 4)
        + (2 * 4 * WIDTH + WIDTH),
        identity=None,
        mergeable=False,
    ),
    'mam': Row(
        variant=True,  # A chain of rows that are here.
        make=lambda targets: peftjax.mam(
            cores=targets, branches=_BLOCKS, num_virtual_tokens=2, projection=3, size=3
        ),
        targets=_CORES,
        fewer_targets=None,
        parameters=LAYERS * (2 * (3 + 1) * WIDTH + 3 * (HIDDEN + WIDTH + 1) + WIDTH)
        + 2 * WIDTH
        + (WIDTH + 1) * 3,
        identity=None,
        mergeable=False,
    ),
    'unipelt': Row(
        make=_unipelt,
        targets=r'layers.*/(up|attention/query)',
        fewer_targets=None,
        parameters=LAYERS
        * (
            # LoRA and its gates; the prefix and its gate; the adapter and its gate.
            (2 * (WIDTH + HIDDEN) + 2 * 2 * WIDTH + 2 * (WIDTH + 1))
            + (2 * (3 + 1) * WIDTH + WIDTH + 1)
            + (3 * (HIDDEN + WIDTH + 1) + WIDTH + HIDDEN + 1)
        )
        + 2 * WIDTH
        + (WIDTH + 1) * 3,
        identity=None,
        mergeable=False,
    ),
}
