"""DoRA: magnitude and direction of a weight train separately, the direction by LoRA.

    peftjax train --config configs/dora.py --workdir runs/dora
    python -m experiments.studies.methods.compare --configs dora --results runs/compare

Paper: Liu et al., DoRA, 2024 (arXiv:2402.09353). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.763 ± 0.018 on unseen films, loss 0.496: mean and deviation of 5 seeds of the
    second command, with 353,282 trained parameters, 1.57 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 8 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(1e-3, dora={'rank': 8, 'alpha': 16.0, 'targets': r'layers/.*/kernel'})
