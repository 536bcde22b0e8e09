"""C3A: a change made of circulant blocks, each given by a trained vector.

    peftjax train --config configs/c3a.py --workdir runs/c3a
    python -m experiments.studies.methods.compare --configs c3a --results runs/compare

Paper: Chen et al., C3A, 2024 (arXiv:2407.19342). Its table 2 has RoBERTa-base on GLUE (b = 768 / 6:
    SST-2 94.20 ± 0.16), but its rates come from a search that is not printed. `peftjax reproduce
    --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.738 ± 0.010 on unseen films, loss 0.558: mean and deviation of 5 seeds of the
    second command, with 166,658 trained parameters, 0.739 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 27 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(3.16e-2, c3a={'block_size': 64, 'targets': r'layers/.*/kernel'})
