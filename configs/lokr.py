"""LoKr: a change that is the Kronecker product of two small matrices.

    peftjax train --config configs/lokr.py --workdir runs/lokr
    python -m experiments.studies.methods.compare --configs lokr --results runs/compare

Paper: Yeh et al., LyCORIS, 2023 (arXiv:2309.14859). Its numbers are about images: Stable Diffusion
    1.5, factor 8, rate 5e-4, weight decay 0.1 (appendix D.2). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.768 ± 0.020 on unseen films, loss 0.495: mean and deviation of 5 seeds of the
    second command, with 44,546 trained parameters, 0.197 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 10 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-2, lokr={'rank': 8, 'alpha': 8.0, 'factor': 8, 'targets': r'layers/.*/kernel'}
    )
