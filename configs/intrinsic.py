"""Intrinsic dimension: one small vector, projected at random to all weights.

    peftjax train --config configs/intrinsic.py --workdir runs/intrinsic
    python -m experiments.studies.methods.compare --configs intrinsic --results runs/compare

Paper: Aghajanyan et al., Intrinsic Dimensionality, 2020 (arXiv:2012.13255). `peftjax reproduce
    --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.733 ± 0.019 on unseen films, loss 0.523: mean and deviation of 5 seeds of the
    second command, with 2,770 trained parameters, 0.0123 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 35 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-3,
        intrinsic={'dimension': 2000, 'targets': r'layers/.*/kernel', 'structure_aware': True},
    )
