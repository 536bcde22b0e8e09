"""RoAd: pairs of output features turned and stretched.

    python -m experiments.main --config configs/road.py --workdir runs/road
    python -m experiments.main --config configs/road.py:paper --workdir runs/paper

Paper: Liao and Monz, RoAd, 2024 (arXiv:2409.00119).
    Number: Llama-3.2-3B in Hugging Face's comparison of methods, accuracy on GSM8K, one seed, from
    its method_comparison/MetaMathQA/results; what the paper itself reports was not read.
Hyperparameters: peft's method_comparison/MetaMathQA: variant 2, groups of 64 on queries and values,
    rate 1e-3, the default weight decay of torch's AdamW, 0.01.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.761 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    Llama-3.2-3B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'llama': 0.3965}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(3e-3, choice.tiny)
        return base.methods(c, road={'variant': 2, 'targets': r'layers/.*/kernel'})
    road = {'variant': 2, 'targets': r'layers/self_attn/[qv]_proj'}
    c = base.methods(base.metamath(1e-3, weight_decay=0.01), head=False, road=road)
    return base.published(c, ROWS[choice.row], trainable=229376)
