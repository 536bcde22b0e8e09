"""LoHa: the product, entry by entry, of two low-rank matrices.

    peftjax train --config configs/loha.py --workdir runs/loha
    python -m experiments.studies.methods.compare --configs loha --results runs/compare

Paper: Hyeon-Woo et al., FedPara, 2021 (arXiv:2108.06098), and Yeh et al., LyCORIS, 2023
    (arXiv:2309.14859). The numbers of both are about images: Stable Diffusion 1.5, rank 4, alpha 2,
    rate 5e-4, weight decay 0.1 (appendix D.2 of the second). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.768 ± 0.016 on unseen films, loss 0.491: mean and deviation of 5 seeds of the
    second command, with 332,546 trained parameters, 1.47 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 11 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-3, loha={'rank': 4, 'alpha': 2.0, 'targets': r'layers/.*/kernel'}
    )
