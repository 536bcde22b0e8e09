"""SHiRA: a few trained entries of each matrix, at places drawn once.

    peftjax train --config configs/shira.py --workdir runs/shira
    python -m experiments.studies.methods.compare --configs shira --results runs/compare

Paper: Bhardwaj et al., Sparse High Rank Adapters, 2024 (arXiv:2406.13175). Its table 2 (LLaMA-7B,
    76.6 to 77.4 on commonsense reasoning with 1 % of the weights; rate 5e-4, table 9) has masks
    from weights and gradients; here, as in peftjax.shira, places are random. `peftjax reproduce
    --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.771 ± 0.016 on unseen films, loss 0.483: mean and deviation of 5 seeds of the
    second command, with 332,546 trained parameters, 1.47 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 69 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(3.16e-3, shira={'rank': 8, 'targets': r'layers/.*/kernel'})
