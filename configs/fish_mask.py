"""FISH mask: only the weights with the largest Fisher information train.

    peftjax train --config configs/fish_mask.py --workdir runs/fish_mask
    python -m experiments.studies.methods.compare --configs fish_mask --results runs/compare

Paper: Sung et al., FISH Mask, 2021 (arXiv:2111.09839). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.737 ± 0.011 on unseen films, loss 0.521: mean and deviation of 5 seeds of the
    second command, with 113,601 trained parameters, 0.503 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 14 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    c = base.small_reviews(1e-3, fish_mask={})
    c.found.fish_mask = {'positions': 'fisher'}
    c.fisher = {'examples': 256, 'share': 0.005, 'targets': r'(embeddings|layers)/.*'}
    return c
