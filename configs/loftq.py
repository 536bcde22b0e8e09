"""LoftQ: a base in four bits, and LoRA that starts from the quantisation error.

    peftjax train --config configs/loftq.py --workdir runs/loftq
    python -m experiments.studies.methods.compare --configs loftq --results runs/compare

Paper: Li et al., LoftQ, 2023 (arXiv:2310.08659). `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: not measured.
Rate: not tuned: its initialisation takes minutes on a CPU, and the second command needs ten.
Time: not measured.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        1e-3, loftq={'rank': 8, 'alpha': 16.0, 'targets': r'layers/.*/kernel'}
    )
