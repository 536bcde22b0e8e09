"""Trainable tokens: only the embeddings of a few tokens train.

    peftjax train --config configs/trainable_tokens.py --workdir runs/trainable_tokens
    python -m experiments.studies.methods.compare --configs trainable_tokens --results runs/compare

Paper: no paper; a method of the peft library. `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.730 ± 0.015 on unseen films, loss 0.554: mean and deviation of 5 seeds of the
    second command, with 1,538 trained parameters, 0.00682 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 7 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-2,
        trainable_tokens={'ids': (101, 102), 'targets': r'embeddings/word_embeddings/embedding'},
    )
