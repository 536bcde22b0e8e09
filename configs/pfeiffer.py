"""Pfeiffer's adapters: one small network a layer, behind the feed-forward sublayer.

    python -m experiments.main --config configs/pfeiffer.py --workdir runs/pfeiffer
    python -m experiments.main --config configs/pfeiffer.py:paper,row=sst2 --workdir runs/paper

Paper: Pfeiffer et al., AdapterFusion, 2020 (arXiv:2005.00247). Numbers: RoBERTa-large as Adapter P
    with 0.8M parameters in LoRA's table 2 (arXiv:2106.09685, as reprinted in VeRA's,
    arXiv:2310.11454): sequences of 128 tokens, median of 5 seeds.
Hyperparameters: LoRA's table 9, Adpt P (0.8M): batch 32, linear schedule, warm-up 6 %.
    AdapterFusion's own rates could not be read and are not given here.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.761 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    RoBERTa-large and a reader of GLUE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {  # epochs; reported, spread
    'sst2': (20, 96.6, 0.2),
    'mrpc': (20, 89.7, 1.2),
    'cola': (20, 67.8, 2.5),
    'qnli': (10, 94.8, 0.3),
    'rte': (20, 80.1, 2.9),
    'stsb': (20, 91.9, 0.4),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    targets = r'layers/ffn/branch'
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        return base.methods(c, pfeiffer={'size': 24, 'targets': targets})
    epochs, value, spread = ROWS[choice.row]
    c = base.glue('FacebookAI/roberta-large', choice.row, 3e-4, 32, f'{epochs} epochs', 128)
    c.warmup = 0.06
    c = base.methods(c, pfeiffer={'size': 16, 'targets': targets})
    return base.published(c, value, spread, trainable=811392)
