"""DiReFT: a low-rank term added to hidden states at the first positions.

    python -m experiments.main --config configs/direft.py --workdir runs/direft
    python -m experiments.main --config configs/direft.py:paper,row=sst2 --workdir runs/paper

Paper: Wu et al., ReFT, 2024 (arXiv:2404.03592), table 13: RoBERTa-base on halves of the development
    sets of GLUE, mean of 5 seeds with the deviation; 18,444 parameters besides the head (0.015 %).
Hyperparameters: table 11: rank 1 at all layers, batch 32 (RTE 8), linear. The dropout on what is
    edited is not built. 256 tokens are from the authors' example of LoReFT.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.755 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    RoBERTa-base and a reader of GLUE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {  # positions, rate, decay, batch, warm-up, epochs; reported, deviation
    'sst2': ('f3', 6e-4, 0.0, 32, 0.1, 40, 92.6, 0.76),
    'mnli': ('f1', 6e-4, 0.0, 32, 0.06, 40, 82.5, 0.22),
    'mrpc': ('f5', 3e-4, 0.0, 32, 0.1, 40, 88.3, 1.23),
    'cola': ('f1', 6e-4, 0.04, 32, 0.0, 60, 58.6, 1.99),
    'qnli': ('f11', 9e-4, 0.0, 32, 0.1, 20, 91.3, 0.19),
    'qqp': ('f11', 6e-4, 0.0, 32, 0.0, 40, 86.4, 0.27),
    'rte': ('f1', 9e-4, 0.04, 8, 0.0, 60, 76.4, 1.48),
    'stsb': ('f3', 6e-4, 0.0, 32, 0.03, 60, 89.3, 0.56),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        return base.methods(c, direft={'rank': 4, 'positions': 'all', 'targets': r'layers'})
    positions, lr, decay, batch, warmup, epochs, value, deviation = ROWS[choice.row]
    c = base.glue('FacebookAI/roberta-base', choice.row, lr, batch, f'{epochs} epochs', 256)
    c.warmup, c.adamw.weight_decay = warmup, decay
    c = base.methods(c, direft={'rank': 1, 'positions': positions, 'targets': r'layers'})
    return base.published(c, value, deviation, trainable=18444)
