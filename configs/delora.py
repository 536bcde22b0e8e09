"""DeLoRA: low-rank terms of length one, and one trained strength.

    python -m experiments.main --config configs/delora.py --workdir runs/delora
    python -m experiments.main --config configs/delora.py:paper --workdir runs/paper

Paper: Bini et al., DeLoRA, 2025 (arXiv:2503.18225).
    Number: Llama-3.2-3B in Hugging Face's comparison of methods, accuracy on GSM8K, one seed, from
    its method_comparison/MetaMathQA/results; what the paper itself reports was not read.
Hyperparameters: peft's method_comparison/MetaMathQA: rank 32 on queries and values, strength 15,
    rate 1e-4.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.765 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    Llama-3.2-3B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'llama': 0.5027}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(3e-3, choice.tiny)
        return base.methods(c, delora={'rank': 8, 'strength': 1.0, 'targets': r'layers/.*/kernel'})
    delora = {'rank': 32, 'strength': 15.0, 'targets': r'layers/self_attn/[qv]_proj'}
    c = base.methods(base.metamath(1e-4), head=False, delora=delora)
    return base.published(c, ROWS[choice.row], trainable=9175096)
