"""LoHa: the product, entry by entry, of two low-rank matrices.

    python -m experiments.main --config configs/loha.py --workdir runs/loha
    python -m experiments.main --config configs/loha.py:paper --workdir runs/paper

Paper: Hyeon-Woo et al., FedPara, 2021 (arXiv:2108.06098), and Yeh et al., LyCORIS, 2023
    (arXiv:2309.14859), whose numbers are about images: Stable Diffusion 1.5, rank 4, alpha 2, rate
    5e-4, weight decay 0.1 (appendix D.2). Number: Llama-3.2-3B in Hugging Face's comparison of
    methods, accuracy on GSM8K, one seed, as reprinted in table 8 of MiSS (arXiv:2409.15371).
Hyperparameters: peft's method_comparison/MetaMathQA: rank 32, alpha 64 on queries and values, rate
    1e-4, weight decay 0.1.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.768 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    Llama-3.2-3B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'llama': 0.4185}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        return base.methods(c, loha={'rank': 4, 'alpha': 2.0, 'targets': r'layers/.*/kernel'})
    loha = {'rank': 32, 'alpha': 64.0, 'targets': r'layers/self_attn/[qv]_proj'}
    c = base.methods(base.metamath(1e-4), head=False, loha=loha)
    return base.published(c, ROWS[choice.row], trainable=18350080)
