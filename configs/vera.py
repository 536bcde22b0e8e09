"""VeRA: two frozen random matrices for all weights, two trained vectors for each.

    python -m experiments.main --config configs/vera.py --workdir runs/vera
    python -m experiments.main --config configs/vera.py:paper,row=sst2 --workdir runs/paper

Paper: Kopiczko et al., VeRA, 2023 (arXiv:2310.11454), table 2: RoBERTa-base on the development sets
    of GLUE, median of 5 seeds, best epoch; 43,008 parameters besides the head, printed as 0.043M.
Hyperparameters: table 8: rank 1024, d from 0.1, batch 64, 512 tokens, linear with 6 % warm-up, a
    rate for the head and one for VeRA.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.737 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    RoBERTa-base and a reader of GLUE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {  # rate, rate of the head, epochs; reported, spread
    'sst2': (4e-3, 4e-3, 60, 94.6, 0.1),
    'mrpc': (1e-2, 4e-3, 30, 89.5, 0.5),
    'cola': (1e-2, 1e-2, 80, 65.6, 0.8),
    'qnli': (1e-2, 4e-3, 25, 91.8, 0.2),
    'rte': (4e-3, 1e-2, 160, 78.7, 0.7),
    'stsb': (1e-2, 1e-2, 80, 90.7, 0.2),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    targets = r'layers/attention/(query|value)'
    if not choice.paper:
        c = base.film_reviews(1e-2, choice.tiny)
        return base.methods(c, vera={'rank': 256, 'targets': r'layers/.*/kernel'})
    lr, head, epochs, value, spread = ROWS[choice.row]
    c = base.glue('FacebookAI/roberta-base', choice.row, lr, 64, f'{epochs} epochs', 512)
    c.warmup, c.rates.select = 0.06, head / lr
    c = base.methods(c, vera={'rank': 1024, 'd_initial': 0.1, 'targets': targets})
    return base.published(c, value, spread, trainable=43008)
