"""MiSS: one small matrix for each weight, whose shards share its rows.

    peftjax train --config configs/miss.py --workdir runs/miss
    python -m experiments.studies.methods.compare --configs miss --results runs/compare

Paper: Kang and Yin, MiSS, 2024 (arXiv:2409.15371). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.742 ± 0.010 on unseen films, loss 0.526: mean and deviation of 5 seeds of the
    second command, with 332,546 trained parameters, 1.47 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 5 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(3.16e-4, miss={'rank': 16, 'targets': r'layers/.*/kernel'})
