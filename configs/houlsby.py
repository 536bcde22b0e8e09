"""Houlsby's adapters: a small network after each sublayer.

    peftjax train --config configs/houlsby.py --workdir runs/houlsby
    python -m experiments.studies.methods.compare --configs houlsby --results runs/compare

Paper: Houlsby et al., 2019 (arXiv:1902.00751). The original trains BERT-large with sizes 8, 64 and
    256, and the layer norms too. `peftjax reproduce --list` has published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.754 ± 0.016 on unseen films, loss 0.500: mean and deviation of 5 seeds of the
    second command, with 153,026 trained parameters, 0.678 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 5 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(
        3.16e-3, houlsby={'size': 16, 'targets': r'layers/(attention|ffn)/branch'}
    )
