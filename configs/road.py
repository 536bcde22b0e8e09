"""RoAd: pairs of output features turned and stretched.

    peftjax train --config configs/road.py --workdir runs/road
    python -m experiments.studies.methods.compare --configs road --results runs/compare

Paper: Liao and Monz, RoAd, 2024 (arXiv:2409.00119). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.761 ± 0.018 on unseen films, loss 0.499: mean and deviation of 5 seeds of the
    second command, with 42,242 trained parameters, 0.187 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 11 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(1e-2, road={'variant': 2, 'targets': r'layers/.*/kernel'})
