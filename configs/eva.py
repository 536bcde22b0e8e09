"""EVA: LoRA that starts from the directions in which a layer's inputs vary most.

    peftjax train --config configs/eva.py --workdir runs/eva
    python -m experiments.studies.methods.compare --configs eva --results runs/compare

Paper: Paischer et al., EVA, 2024 (arXiv:2410.07170). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.759 ± 0.012 on unseen films, loss 0.505: mean and deviation of 5 seeds of the
    second command, with 332,546 trained parameters, 1.47 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 8 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base

_TARGETS = r'layers/.*/kernel'


def get_config() -> base.Config:
    """The settings of the run."""
    c = base.small_reviews(1e-3, lora={'rank': 8, 'alpha': 8.0, 'targets': _TARGETS})
    c.eva = {'rank': 8, 'targets': _TARGETS, 'batches': 16}
    c.found.lora = {'init': 'eva'}
    return c
