"""Prefix tuning: trained keys and values before the keys and values of the sequence.

    peftjax train --config configs/prefix_tuning.py --workdir runs/prefix_tuning
    python -m experiments.studies.methods.compare --configs prefix_tuning --results runs/compare

Paper: Li and Liang, Prefix-Tuning, 2021 (arXiv:2101.00190). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.738 ± 0.015 on unseen films, loss 0.534: mean and deviation of 5 seeds of the
    second command, with 46,850 trained parameters, 0.208 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 13 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-2, prefix_tuning={'num_virtual_tokens': 10, 'targets': r'layers/attention/core'}
    )
