"""P-tuning: prompt embeddings that a small network makes.

    peftjax train --config configs/p_tuning.py --workdir runs/p_tuning
    python -m experiments.studies.methods.compare --configs p_tuning --results runs/compare

Paper: Liu et al., GPT Understands, Too, 2021 (arXiv:2103.10385). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.688 ± 0.030 on unseen films, loss 0.583: mean and deviation of 5 seeds of the
    second command, with 451,970 trained parameters, 2 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 20 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-2,
        p_tuning={
            'num_virtual_tokens': 20,
            'hidden': 384,
            'targets': r'embeddings/word_embeddings',
        },
    )
