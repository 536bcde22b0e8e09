"""OFT: each weight turned by a rotation of small blocks.

    peftjax train --config configs/oft.py --workdir runs/oft
    python -m experiments.studies.methods.compare --configs oft --results runs/compare

Paper: Qiu et al., OFT, 2023 (arXiv:2306.07280). Its numbers are about images. `peftjax reproduce
    --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.766 ± 0.018 on unseen films, loss 0.502: mean and deviation of 5 seeds of the
    second command, with 156,290 trained parameters, 0.693 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 9 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(1e-3, oft={'block_size': 16, 'targets': r'layers/.*/kernel'})
