"""LoRA+: LoRA whose second factor learns faster than the first.

    peftjax train --config configs/lora_plus.py --workdir runs/lora_plus
    python -m experiments.studies.methods.compare --configs lora_plus --results runs/compare

Paper: Hayou et al., LoRA+, 2024 (arXiv:2402.12354). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.754 ± 0.020 on unseen films, loss 0.501: mean and deviation of 5 seeds of the
    second command, with 332,546 trained parameters, 1.47 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 6 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    c = base.small_reviews(1e-3, lora={'rank': 8, 'alpha': 8.0, 'targets': r'layers/.*/kernel'})
    c.around, c.lora_plus = ('lora_plus',), {'ratio': 16.0}
    return c
