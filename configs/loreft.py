"""LoReFT: a low-rank edit of hidden states at the first positions.

    python -m experiments.main --config configs/loreft.py --workdir runs/loreft
    python -m experiments.main --config configs/loreft.py:paper,row=sst2 --workdir runs/paper

Paper: Wu et al., ReFT, 2024 (arXiv:2404.03592), table 13: RoBERTa-base on halves of the development
    sets of GLUE, mean of 5 seeds with the deviation; 18,444 parameters besides the head (0.015 %).
Hyperparameters: table 9: rank 1 at all layers, batch 32, linear. The dropout on what is edited
    (0.05 to 0.2) is not built. 256 tokens are from the authors' example.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.757 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    RoBERTa-base and a reader of GLUE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {  # positions, rate, warm-up, epochs; reported, deviation
    'sst2': ('f3', 6e-4, 0.1, 40, 93.4, 0.64),
    'mnli': ('f1', 6e-4, 0.06, 40, 83.1, 0.26),
    'mrpc': ('f3', 3e-4, 0.0, 40, 89.2, 2.62),
    'cola': ('f3', 4e-4, 0.005, 60, 60.4, 2.60),
    'qnli': ('f11', 9e-4, 0.1, 20, 91.2, 0.25),
    'qqp': ('f11', 6e-4, 0.0, 40, 87.4, 0.23),
    'rte': ('f3', 9e-4, 0.0, 60, 79.0, 2.76),
    'stsb': ('f3', 6e-4, 0.03, 60, 90.0, 0.29),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        return base.methods(c, loreft={'rank': 4, 'positions': 'all', 'targets': r'layers'})
    positions, lr, warmup, epochs, value, deviation = ROWS[choice.row]
    c = base.glue('FacebookAI/roberta-base', choice.row, lr, 32, f'{epochs} epochs', 256)
    c.warmup = warmup
    c = base.methods(c, loreft={'rank': 1, 'positions': positions, 'targets': r'layers'})
    return base.published(c, value, deviation, trainable=18444)
