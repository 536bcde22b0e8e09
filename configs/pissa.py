"""PiSSA: LoRA that starts from the largest singular values of each weight.

    peftjax train --config configs/pissa.py --workdir runs/pissa
    python -m experiments.studies.methods.compare --configs pissa --results runs/compare

Paper: Meng et al., PiSSA, 2024 (arXiv:2404.02948). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.727 ± 0.033 on unseen films, loss 0.550: mean and deviation of 5 seeds of the
    second command, with 332,546 trained parameters, 1.47 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 18 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-4, lora={'rank': 8, 'alpha': 8.0, 'init': 'pissa', 'targets': r'layers/.*/kernel'}
    )
