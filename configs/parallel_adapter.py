"""Scaled parallel adapters: a bottleneck beside the feed-forward sublayer.

    peftjax train --config configs/parallel_adapter.py --workdir runs/parallel_adapter
    python -m experiments.studies.methods.compare --configs parallel_adapter --results runs/compare

Paper: He et al., Towards a Unified View, 2021 (arXiv:2110.04366). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.750 ± 0.010 on unseen films, loss 0.509: mean and deviation of 5 seeds of the
    second command, with 113,810 trained parameters, 0.504 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 11 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-3, parallel_adapter={'size': 24, 'scale': 4.0, 'targets': r'layers/ffn/branch'}
    )
