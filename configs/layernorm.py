"""Tuning layer norms: only their scales and offsets train.

    peftjax train --config configs/layernorm.py --workdir runs/layernorm
    python -m experiments.studies.methods.compare --configs layernorm --results runs/compare

Paper: a baseline of Liu et al., T-Few, 2022 (arXiv:2205.05638). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.745 ± 0.010 on unseen films, loss 0.511: mean and deviation of 5 seeds of the
    second command, with 10,754 trained parameters, 0.0477 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 9 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-3, head=False, select={'targets': (r'.*layer_norm/.*', r'classifier/.*')}
    )
