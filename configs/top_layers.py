"""Tuning the top layers: all weights of the last layers train.

    peftjax train --config configs/top_layers.py --workdir runs/top_layers
    python -m experiments.studies.methods.compare --configs top_layers --results runs/compare

Paper: a baseline of Hu et al., LoRA, 2021 (arXiv:2106.09685). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.738 ± 0.020 on unseen films, loss 0.522: mean and deviation of 5 seeds of the
    second command, with 1,775,234 trained parameters, 7.87 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 10 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(1e-3, top_layers={'count': 1})
