"""LoReFT: a low-rank edit of hidden states at the first positions.

    peftjax train --config configs/loreft.py --workdir runs/loreft
    python -m experiments.studies.methods.compare --configs loreft --results runs/compare

Paper: Wu et al., ReFT, 2024 (arXiv:2404.03592). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.757 ± 0.011 on unseen films, loss 0.498: mean and deviation of 5 seeds of the
    second command, with 19,226 trained parameters, 0.0852 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 7 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(3.16e-3, loreft={'rank': 4, 'positions': 'all', 'targets': 'layers'})
