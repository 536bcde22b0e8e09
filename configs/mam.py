"""MAM adapter: prefixes in attention, parallel adapters beside the feed-forward sublayer.

    peftjax train --config configs/mam.py --workdir runs/mam
    python -m experiments.studies.methods.compare --configs mam --results runs/compare

Paper: He et al., Towards a Unified View, 2021 (arXiv:2110.04366). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.749 ± 0.019 on unseen films, loss 0.505: mean and deviation of 5 seeds of the
    second command, with 601,586 trained parameters, 2.67 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 12 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-3,
        mam={
            'num_virtual_tokens': 10,
            'projection': 96,
            'size': 24,
            'scale': 4.0,
            'cores': r'layers/attention/core',
            'branches': r'layers/ffn/branch',
        },
    )
