"""VB-LoRA: low-rank factors composed of vectors from one bank.

    python -m experiments.main --config configs/vblora.py --workdir runs/vblora
    python -m experiments.main --config configs/vblora.py:paper --workdir runs/paper

Paper: Li et al., VB-LoRA, 2024 (arXiv:2405.15179).
    Number: Llama-3.2-3B in Hugging Face's comparison of methods, accuracy on GSM8K, one seed, from
    its method_comparison/MetaMathQA/results; what the paper itself reports was not read.
Hyperparameters: peft's method_comparison/MetaMathQA: rank 4 on queries and values, 256 vectors of
    length 256, the best 2; rate 1e-4.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.750 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    Llama-3.2-3B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'llama': 0.37}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(3e-3, choice.tiny)
        return base.methods(
            c,
            vblora={
                'rank': 4,
                'num_vectors': 90,
                'vector_length': 64,
                'targets': r'layers/.*/kernel',
            },
        )
    vblora = {'rank': 4, 'targets': r'layers/self_attn/[qv]_proj'}
    c = base.methods(base.metamath(1e-4), head=False, vblora=vblora)
    return base.published(c, ROWS[choice.row], trainable=1212416)
