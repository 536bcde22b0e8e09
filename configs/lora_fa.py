"""LoRA-FA: LoRA whose first factor is random and frozen.

    python -m experiments.main --config configs/lora_fa.py --workdir runs/lora_fa
    python -m experiments.main --config configs/lora_fa.py:paper --workdir runs/paper

Paper: Zhang et al., LoRA-FA, 2023 (arXiv:2308.03303). Its hyperparameters could not be read.
    Number: Llama-3.2-3B in Hugging Face's comparison of methods, accuracy on GSM8K, one seed, as
    reprinted in table 8 of MiSS (arXiv:2409.15371).
Hyperparameters: peft's method_comparison/MetaMathQA: rank 32, alpha 64 on queries and values, rate
    1e-4, weight decay 0.1. Its optimiser corrects the gradient of B, which is not done here.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.755 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    Llama-3.2-3B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'llama': 0.4299}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(3e-3, choice.tiny)
        return base.methods(c, lora_fa={'rank': 8, 'alpha': 8.0, 'targets': r'layers/.*/kernel'})
    lora_fa = {'rank': 32, 'alpha': 64.0, 'targets': r'layers/self_attn/[qv]_proj'}
    c = base.methods(base.metamath(1e-4), head=False, lora_fa=lora_fa)
    return base.published(c, ROWS[choice.row], trainable=3670016)
