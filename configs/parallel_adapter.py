"""Scaled parallel adapters: a bottleneck beside the feed-forward sublayer.

    python -m experiments.main --config configs/parallel_adapter.py --workdir runs/parallel_adapter
    python -m experiments.main --config configs/parallel_adapter.py:paper --workdir runs/paper

Paper: He et al., Towards a Unified View, 2021 (arXiv:2110.04366), section 4: BART-large on XSum,
    bottleneck 512. What it reports could not be read and is not given here.
Hyperparameters: the authors' exps/run_xsum.sh, block FFN Scaled Parallel Adapter: 64 sequences a
    step (16 by 4), rate 5e-5 falling linearly from the start, weight decay 0.01, gradients clipped
    at 0.1. It also smooths labels by 0.1. The path of the targets is that of a family which is not
    built.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.750 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    BART-large and a reader of XSum.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'xsum': (5e-5, 64, '100000 steps')}  # rate, batch, duration


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        parallel = {'size': 24, 'scale': 4.0, 'targets': r'layers/ffn/branch'}
        return base.methods(c, parallel_adapter=parallel)
    lr, batch, duration = ROWS[choice.row]
    c = base.text('facebook/bart-large', choice.row, lr, batch, duration, (512,), task='seq2seq_lm')
    c.clip_norm, c.adamw.weight_decay = 0.1, 0.01
    parallel = {'size': 512, 'scale': 4.0, 'targets': r'(encoder|decoder)/layers/ffn/branch'}
    return base.methods(c, head=False, parallel_adapter=parallel)
