"""Diff pruning: a sparse change of all weights, with learned sparsity.

    peftjax train --config configs/diff_pruning.py --workdir runs/diff_pruning
    python -m experiments.studies.methods.compare --configs diff_pruning --results runs/compare

Paper: Guo et al., Diff Pruning, 2020 (arXiv:2012.07463). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.769 ± 0.019 on unseen films, loss 0.492: mean and deviation of 5 seeds of the
    second command, with 21,234,434 trained parameters, 94.1 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 24 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    c = base.small_reviews(1e-4, diff_pruning={'targets': r'layers/.*/kernel'})
    c.penalties.expected_entries = 1e-6
    return c
