"""LLaMA-Adapter: prompts in attention, behind a gate that starts at zero.

    peftjax train --config configs/adaption_prompt.py --workdir runs/adaption_prompt
    python -m experiments.studies.methods.compare --configs adaption_prompt --results runs/compare

Paper: Zhang et al., LLaMA-Adapter, 2023 (arXiv:2303.16199). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.730 ± 0.017 on unseen films, loss 0.546: mean and deviation of 5 seeds of the
    second command, with 23,816 trained parameters, 0.106 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 6 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-2,
        adaption_prompt={
            'num_virtual_tokens': 10,
            'key': 'key',
            'value': 'value',
            'targets': r'layers/attention/core',
        },
    )
