"""LoRA+: LoRA whose second factor learns faster than the first.

    python -m experiments.main --config configs/lora_plus.py --workdir runs/lora_plus
    python -m experiments.main --config configs/lora_plus.py:paper --workdir runs/paper

Paper: Hayou et al., LoRA+, 2024 (arXiv:2402.12354). Its numbers could not be read and are not given
    here.
Hyperparameters: the authors' glue/scripts/run_roberta_lora.sh: RoBERTa-base on MNLI, rank and alpha
    8 on queries and keys, rate 1e-4 and 20 times that for B, batch 32, 3 epochs, 128 tokens,
    linear, Adam's second beta 0.99.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.754 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    RoBERTa-base and a reader of GLUE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'mnli': (1e-4, 20.0)}  # rate, ratio


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(3e-4, choice.tiny)
        c = base.methods(c, lora={'rank': 8, 'alpha': 8.0, 'targets': r'layers/.*/kernel'})
        ratio = 16.0
    else:
        lr, ratio = ROWS[choice.row]
        c = base.glue('FacebookAI/roberta-base', choice.row, lr, 32, '3 epochs', 128)
        c.adamw.b2 = 0.99
        targets = r'layers/attention/(query|key)'
        c = base.methods(c, lora={'rank': 8, 'alpha': 8.0, 'targets': targets})
    c.around = ('lora_plus',)
    c.lora_plus = ConfigDict({'ratio': ratio})
    return c
