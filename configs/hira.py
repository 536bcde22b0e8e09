"""HiRA: a low-rank matrix that scales the entries of the weight.

    python -m experiments.main --config configs/hira.py --workdir runs/hira
    python -m experiments.main --config configs/hira.py:paper --workdir runs/paper

Paper: Huang et al., HiRA, ICLR 2025 (openreview.net/forum?id=TwJrTz9cRS), whose tables could not be
    read. Number: Llama-3.2-3B in Hugging Face's comparison of methods, accuracy on GSM8K, one seed:
    peft's method_comparison/MetaMathQA/results/hira--llama-3.2-3B-rank32-lr4.5e-3.json.
Hyperparameters: the same file: rank 32 on queries and values, rate 4.5e-3, no weight decay.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.754 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    Llama-3.2-3B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'llama': 0.5072}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(3e-3, choice.tiny)
        return base.methods(c, hira={'rank': 8, 'targets': r'layers/.*/kernel'})
    hira = {'rank': 32, 'targets': r'layers/self_attn/[qv]_proj'}
    c = base.methods(base.metamath(4.5e-3, weight_decay=0.0), head=False, hira=hira)
    return base.published(c, ROWS[choice.row], trainable=9175040)
