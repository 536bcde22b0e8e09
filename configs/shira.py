"""SHiRA: a few trained entries of each matrix, at places drawn once.

    python -m experiments.main --config configs/shira.py --workdir runs/shira
    python -m experiments.main --config configs/shira.py:paper --workdir runs/paper

Paper: Bhardwaj et al., Sparse High Rank Adapters, 2024 (arXiv:2406.13175). Its table 2 (LLaMA-7B,
    76.6 to 77.4 on commonsense reasoning with 1 % of the weights; rate 5e-4, table 9) has masks
    from weights and gradients; here, as in peftjax.shira, places are random. Number: Llama-3.2-3B
    in Hugging Face's comparison of methods, accuracy on GSM8K, one seed, as reprinted in table 8 of
    MiSS (arXiv:2409.15371).
Hyperparameters: peft's method_comparison/MetaMathQA: rank 32 on queries and values, rate 3e-4, the
    default weight decay of torch's AdamW, 0.01.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.771 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
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
        return base.methods(c, shira={'rank': 8, 'targets': r'layers/.*/kernel'})
    shira = {'rank': 32, 'targets': r'layers/self_attn/[qv]_proj'}
    c = base.methods(base.metamath(3e-4, weight_decay=0.01), head=False, shira=shira)
    return base.published(c, ROWS[choice.row], trainable=9175040)
