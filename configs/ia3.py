"""(IA)³: trained vectors that rescale keys, values and the feed-forward activations.

    peftjax train --config configs/ia3.py --workdir runs/ia3
    python -m experiments.studies.methods.compare --configs ia3 --results runs/compare

Paper: Liu et al., T-Few, 2022 (arXiv:2205.05638). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.749 ± 0.012 on unseen films, loss 0.520: mean and deviation of 5 seeds of the
    second command, with 14,594 trained parameters, 0.0647 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 9 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-2, ia3={'targets': r'layers/attention/(key|value)', 'feedforward': r'layers/ffn/output'}
    )
