"""GraLoRA: a separate low-rank term for every block of a grid.

    peftjax train --config configs/gralora.py --workdir runs/gralora
    python -m experiments.studies.methods.compare --configs gralora --results runs/compare

Paper: Jung et al., GraLoRA, 2025 (arXiv:2505.20355). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.770 ± 0.017 on unseen films, loss 0.486: mean and deviation of 5 seeds of the
    second command, with 332,546 trained parameters, 1.47 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 11 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-3, gralora={'rank': 8, 'blocks': 2, 'targets': r'layers/.*/kernel'}
    )
