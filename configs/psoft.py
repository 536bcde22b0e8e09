"""PSOFT: a rotation inside of the principal subspace of each matrix.

    python -m experiments.main --config configs/psoft.py --workdir runs/psoft
    python -m experiments.main --config configs/psoft.py:paper --workdir runs/paper

Paper: Wu et al., PSOFT, 2025 (arXiv:2505.11235).
    Number: Llama-3.2-3B in Hugging Face's comparison of methods, accuracy on GSM8K, one seed, from
    its method_comparison/MetaMathQA/results; what the paper itself reports was not read.
Hyperparameters: peft's method_comparison/MetaMathQA: rank 256 on queries and values, both
    stretches, rate 1e-4.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.754 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    Llama-3.2-3B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'llama': 0.4488}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.methods(base.film_reviews(3e-3, choice.tiny), psoft={})
        subspaces = {'rank': 32, 'targets': r'layers/.*/kernel'}
    else:
        c = base.methods(base.metamath(1e-4), head=False, psoft={})
        subspaces = {'rank': 256, 'targets': r'layers/self_attn/[qv]_proj'}
        c = base.published(c, ROWS[choice.row], trainable=1856512)
    c.found.psoft = ConfigDict({'subspaces': 'principal_subspaces'})
    c.principal_subspaces = ConfigDict(subspaces)
    return c
