"""VeRA: two frozen random matrices shared by all weights, two trained vectors for each weight.

    peftjax train --config configs/vera.py --workdir runs/vera
    python -m experiments.studies.methods.compare --configs vera --results runs/compare

Paper: Kopiczko et al., VeRA, 2023 (arXiv:2310.11454). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.737 ± 0.009 on unseen films, loss 0.527: mean and deviation of 5 seeds of the
    second command, with 30,722 trained parameters, 0.136 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 14 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(1e-2, vera={'rank': 256, 'targets': r'layers/.*/kernel'})
