"""Pfeiffer's adapters: a small network in each layer, after the feed-forward sublayer.

    peftjax train --config configs/pfeiffer.py --workdir runs/pfeiffer
    python -m experiments.studies.methods.compare --configs pfeiffer --results runs/compare

Paper: Pfeiffer et al., AdapterFusion, 2020 (arXiv:2005.00247). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.761 ± 0.014 on unseen films, loss 0.492: mean and deviation of 5 seeds of the
    second command, with 113,810 trained parameters, 0.504 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 15 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(3.16e-3, pfeiffer={'size': 24, 'targets': r'layers/ffn/branch'})
