"""Full fine-tuning: every weight trains.

    peftjax train --config configs/full.py --workdir runs/full
    python -m experiments.studies.methods.compare --configs full --results runs/compare

Paper: none; it is the baseline of all others. `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.770 ± 0.017 on unseen films, loss 0.489: mean and deviation of 5 seeds of the
    second command, with 22,566,146 trained parameters, 100 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 9 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(1e-4, head=False, full={})
