"""VB-LoRA: low-rank factors composed of vectors from one bank.

    peftjax train --config configs/vblora.py --workdir runs/vblora
    python -m experiments.studies.methods.compare --configs vblora --results runs/compare

Paper: Li et al., VB-LoRA, 2024 (arXiv:2405.15179). `peftjax reproduce --list` has published
    numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.750 ± 0.012 on unseen films, loss 0.506: mean and deviation of 5 seeds of the
    second command, with 239,810 trained parameters, 1.06 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 6 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-2,
        vblora={'rank': 4, 'num_vectors': 90, 'vector_length': 64, 'targets': r'layers/.*/kernel'},
    )
