"""UniPELT: LoRA, a prefix and an adapter, each behind a gate.

    peftjax train --config configs/unipelt.py --workdir runs/unipelt
    python -m experiments.studies.methods.compare --configs unipelt --results runs/compare

Paper: Mao et al., UniPELT, 2021 (arXiv:2110.07577). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.758 ± 0.020 on unseen films, loss 0.494: mean and deviation of 5 seeds of the
    second command, with 684,554 trained parameters, 3.03 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 8 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-2,
        unipelt={
            'num_virtual_tokens': 10,
            'projection': 96,
            'rank': 8,
            'size': 24,
            'cores': r'layers/attention/core',
            'kernels': r'layers/attention/(query|value)',
            'branches': r'layers/ffn/branch',
        },
    )
