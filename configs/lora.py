"""LoRA: a trained low-rank term on the query and value kernels.

    peftjax train --config configs/lora.py --workdir runs/lora
    python -m experiments.studies.methods.compare --configs lora --results runs/compare

Paper: Hu et al., LoRA, 2021 (arXiv:2106.09685). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.757 ± 0.012 on unseen films, loss 0.494: mean and deviation of 5 seeds of the
    second command, with 74,498 trained parameters, 0.33 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 5 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-2, lora={'rank': 8, 'alpha': 8.0, 'targets': r'layers/attention/(query|value)'}
    )
