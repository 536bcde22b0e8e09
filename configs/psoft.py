"""PSOFT: a rotation inside the principal subspace of each matrix.

    peftjax train --config configs/psoft.py --workdir runs/psoft
    python -m experiments.studies.methods.compare --configs psoft --results runs/compare

Paper: Wu et al., PSOFT, 2025 (arXiv:2505.11235). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.754 ± 0.012 on unseen films, loss 0.502: mean and deviation of 5 seeds of the
    second command, with 20,930 trained parameters, 0.0927 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 7 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    c = base.small_reviews(3.16e-3, psoft={})
    c.found.psoft = {'subspaces': 'principal_subspaces'}
    c.principal_subspaces = {'rank': 32, 'targets': r'layers/.*/kernel'}
    return c
