"""FourierFT: a change given by a few coefficients of its Fourier transform.

    peftjax train --config configs/fourierft.py --workdir runs/fourierft
    python -m experiments.studies.methods.compare --configs fourierft --results runs/compare

Paper: Gao et al., FourierFT, 2024 (arXiv:2405.03003). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.738 ± 0.015 on unseen films, loss 0.523: mean and deviation of 5 seeds of the
    second command, with 36,770 trained parameters, 0.163 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 26 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    fourierft = {'n_frequency': 1000, 'scaling': 140.0, 'targets': r'layers/.*/kernel'}
    c = base.small_reviews(3.16e-2, fourierft=fourierft)
    c.rates.select = 0.1
    return c
