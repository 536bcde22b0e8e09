"""LoRA-FA: LoRA whose first factor is random and frozen.

    peftjax train --config configs/lora_fa.py --workdir runs/lora_fa
    python -m experiments.studies.methods.compare --configs lora_fa --results runs/compare

Paper: Zhang et al., LoRA-FA, 2023 (arXiv:2308.03303). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.755 ± 0.015 on unseen films, loss 0.504: mean and deviation of 5 seeds of the
    second command, with 166,658 trained parameters, 0.739 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 5 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-3, lora_fa={'rank': 8, 'alpha': 8.0, 'targets': r'layers/.*/kernel'}
    )
