"""DeLoRA: normalised low-rank terms with one trained strength.

    peftjax train --config configs/delora.py --workdir runs/delora
    python -m experiments.studies.methods.compare --configs delora --results runs/compare

Paper: Bini et al., DeLoRA, 2025 (arXiv:2503.18225). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.765 ± 0.013 on unseen films, loss 0.493: mean and deviation of 5 seeds of the
    second command, with 332,582 trained parameters, 1.47 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 9 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-3, delora={'rank': 8, 'strength': 1.0, 'targets': r'layers/.*/kernel'}
    )
