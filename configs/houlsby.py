"""Houlsby's adapters: a small network behind each sublayer.

    python -m experiments.main --config configs/houlsby.py --workdir runs/houlsby
    python -m experiments.main --config configs/houlsby.py:paper,row=sst2 --workdir runs/paper

Paper: Houlsby et al., 2019 (arXiv:1902.00751). Numbers: RoBERTa-large as Adapter H with 0.8M
    parameters in LoRA's table 2 (arXiv:2106.09685, as reprinted in VeRA's, arXiv:2310.11454):
    sequences of 128 tokens, median of 5 seeds. The original trains BERT-large with sizes 8, 64 and
    256, and the layer norms too.
Hyperparameters: LoRA's table 9, last block. The start of the run is linear warm-up of 6 % there.
    The authors' own example (google-research/adapter-bert) is the row bert_mrpc: BERT-base, 85.8 on
    the development set.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.754 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    RoBERTa-large or BERT-base and a reader of GLUE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {  # rate, epochs; reported, spread
    'sst2': (3e-4, 5, 96.3, 0.5),
    'mrpc': (3e-4, 10, 87.7, 1.7),
    'cola': (3e-4, 10, 66.3, 2.0),
    'qnli': (3e-4, 5, 94.7, 0.2),
    'rte': (3e-4, 20, 72.9, 2.9),
    'stsb': (3e-4, 10, 91.5, 0.5),
    'bert_mrpc': (3e-4, 5, 85.8, 0.0),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    targets = r'layers/(attention|ffn)/branch'
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        return base.methods(c, houlsby={'size': 16, 'targets': targets})
    lr, epochs, value, spread = ROWS[choice.row]
    large = choice.row != 'bert_mrpc'
    source = 'FacebookAI/roberta-large' if large else 'google-bert/bert-base-uncased'
    c = base.glue(source, choice.row.removeprefix('bert_'), lr, 32, f'{epochs} epochs', 128)
    c.warmup = 0.06 if large else 0.1
    c = base.methods(c, houlsby={'size': 8 if large else 64, 'targets': targets})
    return base.published(c, value, spread, trainable=835968 if large else 0)
