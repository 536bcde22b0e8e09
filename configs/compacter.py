"""Compacter: adapters whose weights are sums of Kronecker products.

    peftjax train --config configs/compacter.py --workdir runs/compacter
    python -m experiments.studies.methods.compare --configs compacter --results runs/compare

Paper: Karimi Mahabadi et al., Compacter, 2021 (arXiv:2106.04647). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.738 ± 0.012 on unseen films, loss 0.521: mean and deviation of 5 seeds of the
    second command, with 15,522 trained parameters, 0.0688 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 11 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-2, compacter={'size': 24, 'terms': 4, 'targets': r'layers/(attention|ffn)/branch'}
    )
