"""P-tuning: prompt embeddings that a small network makes.

    python -m experiments.main --config configs/p_tuning.py --workdir runs/p_tuning
    python -m experiments.main --config configs/p_tuning.py:paper --workdir runs/paper

Paper: Liu et al., GPT Understands, Too, 2021 (arXiv:2103.10385), whose numbers could not be read.
    Number: Llama-3.2-3B in Hugging Face's comparison of methods, accuracy on GSM8K, one seed, as
    reprinted in table 8 of MiSS (arXiv:2409.15371).
Hyperparameters: peft's method_comparison/MetaMathQA: 20 vectors, a network of width 3072, rate
    1e-4, weight decay 0.1. The authors' PT-Fewshot/scripts/rte_pt_few_shot.sh tunes ALBERT-xxlarge
    as well: 3,500 steps at 1e-4, warm-up 150, 256 tokens.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.688 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    Llama-3.2-3B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'llama': 0.3707}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        return base.methods(
            base.film_reviews(1e-3, choice.tiny),
            p_tuning={
                'num_virtual_tokens': 20,
                'hidden': 384,
                'targets': r'embeddings/word_embeddings',
            },
        )
    prompt = {'num_virtual_tokens': 20, 'hidden': 3072, 'targets': r'embed_tokens'}
    c = base.methods(base.metamath(1e-4), head=False, p_tuning=prompt)
    return base.published(c, ROWS[choice.row])
