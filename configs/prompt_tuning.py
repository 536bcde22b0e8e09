"""Prompt tuning: trained embeddings before the embeddings of the sequence.

    peftjax train --config configs/prompt_tuning.py --workdir runs/prompt_tuning
    python -m experiments.studies.methods.compare --configs prompt_tuning --results runs/compare

Paper: Lester et al., Prompt Tuning, 2021 (arXiv:2104.08691). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.718 ± 0.018 on unseen films, loss 0.546: mean and deviation of 5 seeds of the
    second command, with 8,450 trained parameters, 0.0374 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 13 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-2,
        prompt_tuning={
            'num_virtual_tokens': 20,
            'init': 'vocabulary',
            'targets': r'embeddings/word_embeddings',
        },
    )
