"""MAM adapter: prefixes in attention, parallel adapters beside the feed-forward.

    python -m experiments.main --config configs/mam.py --workdir runs/mam
    python -m experiments.main --config configs/mam.py:paper,row=sst2 --workdir runs/paper

Paper: He et al., Towards a Unified View, 2021 (arXiv:2110.04366), whose numbers could not be read.
Hyperparameters: the authors' exps/run_glue.sh (RoBERTa-base: 16 vectors, bottleneck 16, scale 2,
    rate 1e-4, batch 32, 10 epochs, weight decay 0.1, warm-up 6 %, Adam 0.9, 0.98, 1e-6, clipping at
    1, 128 tokens) and exps/run_xsum.sh (BART-large: 30 vectors, bottleneck 512, scale 4, rate 5e-5,
    batch 64, 100,000 steps, weight decay 0.01, clipping at 0.1). Prefixes come from a network of
    width 800.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.749 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    RoBERTa-base or BART-large and readers of their data.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'sst2': 16, 'mnli': 16, 'xsum': 30}  # vectors


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        return base.methods(c, mam=_mam(10, 96, 24, 4.0))
    length = ROWS[choice.row]
    if choice.row == 'xsum':
        c = base.text(
            'facebook/bart-large', 'xsum', 5e-5, 64, '100000 steps', (512,), task='seq2seq_lm'
        )
        c.clip_norm, c.adamw.weight_decay = 0.1, 0.01
        return base.methods(c, head=False, mam=_mam(length, 800, 512, 4.0))
    c = base.glue('FacebookAI/roberta-base', choice.row, 1e-4, 32, '10 epochs', 128)
    c.warmup, c.clip_norm = 0.06, 1.0
    c.adamw = ConfigDict({'weight_decay': 0.1, 'b2': 0.98, 'eps': 1e-6})
    return base.methods(c, mam=_mam(length, 800, 16, 2.0))


def _mam(length: int, projection: int, size: int, scale: float) -> dict:
    return {
        'num_virtual_tokens': length,
        'projection': projection,
        'size': size,
        'scale': scale,
        'cores': r'layers/attention/core',
        'branches': r'layers/ffn/branch',
    }
