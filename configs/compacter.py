"""Compacter: adapters whose weights are sums of Kronecker products.

    python -m experiments.main --config configs/compacter.py --workdir runs/compacter
    python -m experiments.main --config configs/compacter.py:paper,row=rte --workdir runs/paper

Paper: Karimi Mahabadi et al., Compacter, 2021 (arXiv:2106.04647). The number of the row rte is from
    Liu et al., T-Few, 2022 (arXiv:2205.05638), table 4: T0-3B on 32 examples, median over prompts
    and samples of examples, interquartile range, 807K parameters. What the original reports for
    T5-base could not be read and is not given.
Hyperparameters: T-Few's appendix D: 500 steps at 3e-3, n = 4. The row t5_mrpc is the authors'
    seq2seq/configs/compacter.json: rate 3e-3, batch 100, 20 epochs, 500 steps of warm-up, 128
    tokens, with the layer norms. The paths of the targets are those of a family which is not built.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.738 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    T0-3B or T5-base and readers of RTE and MRPC.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'rte': (64, 75.8, 6.1), 't5_mrpc': (24, 0.0, 0.0)}  # width; reported, spread


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(3e-3, choice.tiny)
        targets = r'layers/(attention|ffn)/branch'
        return base.methods(c, compacter={'size': 24, 'terms': 4, 'targets': targets})
    size, value, spread = ROWS[choice.row]
    compacter = {'size': size, 'terms': 4, 'targets': r'.*branch', 'activation': 'gelu_tanh'}
    if choice.row == 'rte':
        c = base.methods(base.few_shot(3e-3, 500), head=False, compacter=compacter)
        return base.published(c, value, spread)
    c = base.text('google-t5/t5-base', 'mrpc', 3e-3, 100, '20 epochs', (128,), task='seq2seq_lm')
    c.warmup = 500
    return base.methods(c, head=False, compacter=compacter, select={'targets': r'.*layer_norm/.*'})
