"""BOFT: each weight turned by a product of sparse rotations.

    peftjax train --config configs/boft.py --workdir runs/boft
    python -m experiments.studies.methods.compare --configs boft --results runs/compare

Paper: Liu et al., BOFT, 2023 (arXiv:2311.06243). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.765 ± 0.021 on unseen films, loss 0.503: mean and deviation of 5 seeds of the
    second command, with 166,658 trained parameters, 0.739 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 19 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-3, boft={'block_size': 8, 'factors': 2, 'targets': r'layers/.*/kernel'}
    )
