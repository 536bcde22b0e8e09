"""RandLoRA: a sum of random bases with trained diagonals, of full rank.

    peftjax train --config configs/randlora.py --workdir runs/randlora
    python -m experiments.studies.methods.compare --configs randlora --results runs/compare

Paper: Albert et al., RandLoRA, 2025 (arXiv:2502.00987). Its table 4 has RoBERTa-base on GLUE (rank
    64: SST-2 92.2 ± 0.3) without settings; its table 6 has Llama-3-8B on Commonsense170K (85.6;
    rank 15, rate 1e-4, batch 4, 3 epochs, dropout 0.05, table 9). `peftjax reproduce --list` has
    published numbers.
Data: film reviews, the small budget of REPRODUCTIONS.md: `configs.base.small_reviews`.
Expected: accuracy 0.757 ± 0.013 on unseen films, loss 0.514: mean and deviation of 5 seeds of the
    second command, with 180,482 trained parameters, 0.8 % of the base.
Rate: the best of a grid of half decades on the validation films with seed 0 (second command).
Time: 17 s for a run once its program is compiled, on 2 CPU cores that other work shared.
"""

from configs import base


def get_config() -> base.Config:
    """The settings of the run."""
    return base.small_reviews(3.16e-4, randlora={'rank': 32, 'targets': r'layers/.*/kernel'})
