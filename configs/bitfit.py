"""BitFit: only the bias vectors train.

    peftjax train --config configs/bitfit.py --workdir runs/bitfit
    python -m experiments.studies.methods.compare --configs bitfit --results runs/compare

Paper: Ben Zaken et al., BitFit, 2021 (arXiv:2106.10199). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.739 ± 0.003 on unseen films, loss 0.519: mean and deviation of 5 seeds of the
    second command, with 26,498 trained parameters, 0.117 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 7 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-3, head=False, select={'targets': (r'(embeddings|layers)/.*bias', r'classifier/.*')}
    )
