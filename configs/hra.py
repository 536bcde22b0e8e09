"""HRA: each weight reflected in a chain of hyperplanes.

    python -m experiments.main --config configs/hra.py --workdir runs/hra
    python -m experiments.main --config configs/hra.py:paper,row=sst2 --workdir runs/paper

Paper: Yuan et al., HRA, 2024 (arXiv:2405.17484), table 2: DeBERTaV3-base on the development sets of
    GLUE with r = 8 and no penalty (lambda = 0), MNLI matched, no spread given; 663,552 parameters,
    printed as 0.66M.
Hyperparameters: table 5, lambda = 0: batch 32, on every linear layer. Its dropout of 0.1 is not
    built. The schedule is taken as linear, as in BOFT's and AdaLoRA's settings, which it follows.
    The paths are BERT's.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.755 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    DeBERTaV3-base, whose family is not built, and a reader of GLUE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {  # rate, epochs, warm-up, length; reported
    'sst2': (3e-3, 10, 500, 128, 96.45),
    'mnli': (1e-2, 8, 1000, 256, 90.70),
    'cola': (9e-3, 34, 100, 64, 73.70),
    'qqp': (8e-3, 12, 1000, 320, 91.29),
    'qnli': (1e-2, 12, 500, 512, 94.66),
    'rte': (5e-3, 11, 50, 320, 88.45),
    'mrpc': (6e-3, 60, 50, 320, 93.69),
    'stsb': (5e-3, 39, 50, 128, 91.86),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    hra = {'rank': 8, 'targets': r'layers/.*/kernel'}
    if not choice.paper:
        return base.methods(base.film_reviews(3e-3, choice.tiny), hra=hra)
    lr, epochs, warmup, length, value = ROWS[choice.row]
    c = base.glue('microsoft/deberta-v3-base', choice.row, lr, 32, f'{epochs} epochs', length)
    c.warmup = warmup
    return base.published(base.methods(c, hra=hra), value, trainable=663552)
