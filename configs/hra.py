"""HRA: each weight reflected in a chain of hyperplanes.

    peftjax train --config configs/hra.py --workdir runs/hra
    python -m experiments.studies.methods.compare --configs hra --results runs/compare

Paper: Yuan et al., HRA, 2024 (arXiv:2405.17484). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.755 ± 0.010 on unseen films, loss 0.503: mean and deviation of 5 seeds of the
    second command, with 166,658 trained parameters, 0.739 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 13 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(1e-3, hra={'rank': 8, 'targets': r'layers/.*/kernel'})
