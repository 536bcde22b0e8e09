"""MiSS: one small matrix, its rows shared by the shards of a weight.

    python -m experiments.main --config configs/miss.py --workdir runs/miss
    python -m experiments.main --config configs/miss.py:paper --workdir runs/paper

Paper: Kang and Yin, MiSS, 2024 (arXiv:2409.15371), table 5: LLaMA-2-7B tuned on MetaMathQA,
    accuracy on GSM8K, mean of repeated runs, no spread given; 87.0M parameters. RoBERTa-base on
    GLUE is in table 4.
Hyperparameters: table 10: rank 64 on all linear layers, rate 2e-5, cosine without warm-up, batch
    64, 1 epoch, no dropout. The length, 512, is not stated.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.742 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    LLaMA-2-7B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'gsm8k': 48.16}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    targets = r'layers/.*/kernel'
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        return base.methods(c, miss={'rank': 16, 'targets': targets})
    c = base.text('meta-llama/Llama-2-7b-hf', 'metamathqa', 2e-5, 64, '1 epoch', (512,))
    c.schedule = 'cosine'
    c = base.methods(c, head=False, miss={'rank': 64, 'targets': targets})
    return base.published(c, ROWS[choice.row], trainable=87031808)
