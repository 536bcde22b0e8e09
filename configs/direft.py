"""DiReFT: a low-rank term added to hidden states at the first positions.

    peftjax train --config configs/direft.py --workdir runs/direft
    python -m experiments.studies.methods.compare --configs direft --results runs/compare

Paper: Wu et al., ReFT, 2024 (arXiv:2404.03592). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.755 ± 0.017 on unseen films, loss 0.501: mean and deviation of 5 seeds of the
    second command, with 19,226 trained parameters, 0.0852 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 11 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(3.16e-3, direft={'rank': 4, 'positions': 'all', 'targets': 'layers'})
