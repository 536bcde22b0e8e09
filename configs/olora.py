"""OLoRA: LoRA that starts from the QR decomposition of each weight.

    peftjax train --config configs/olora.py --workdir runs/olora
    python -m experiments.studies.methods.compare --configs olora --results runs/compare

Paper: Büyükakyüz, OLoRA, 2024 (arXiv:2406.01775). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.753 ± 0.010 on unseen films, loss 0.507: mean and deviation of 5 seeds of the
    second command, with 332,546 trained parameters, 1.47 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 15 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-3, lora={'rank': 8, 'alpha': 8.0, 'init': 'olora', 'targets': r'layers/.*/kernel'}
    )
