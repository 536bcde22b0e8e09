"""AdaLoRA: low-rank triplets; training keeps the important ones.

    peftjax train --config configs/adalora.py --workdir runs/adalora
    python -m experiments.studies.methods.compare --configs adalora --results runs/compare

Paper: Zhang et al., AdaLoRA, 2023 (arXiv:2303.10512). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.730 ± 0.014 on unseen films, loss 0.535: mean and deviation of 5 seeds of the
    second command, with 498,866 trained parameters, 2.21 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 10 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    c = base.small_reviews(
        1e-2, adalora={'init_rank': 12, 'alpha': 16.0, 'targets': r'layers/.*/kernel'}
    )
    c.around = ('adalora_allocation',)
    c.adalora_allocation = {'target_rank': 8, 'initial_steps': 12, 'final_steps': 24, 'every': 4}
    c.penalties.orthogonality = 0.1
    return c
