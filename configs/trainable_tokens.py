"""Trainable tokens: the embeddings of a few tokens train.

    python -m experiments.main --config configs/trainable_tokens.py --workdir runs/trainable_tokens
    python -m experiments.main --config configs/trainable_tokens.py:paper --workdir runs/paper

Paper: no paper (arXiv: none); a method of the peft library. Number: Llama-3.2-3B, accuracy on
    GSM8K, one seed: its
    method_comparison/MetaMathQA/results/trainable_tokens--llama-3.2-3B-sos+eos.json, 6,144
    parameters.
Hyperparameters: the same file: the tokens 128000 and 128001, rate 0.2, cosine, the default weight
    decay of torch's AdamW.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.730 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    Llama-3.2-3B and a reader of MetaMathQA.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'llama': 0.2919}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        tokens = {'ids': (101, 102), 'targets': r'embeddings/word_embeddings/embedding'}
        return base.methods(c, trainable_tokens=tokens)
    tokens = {'ids': (128000, 128001), 'targets': r'embed_tokens/embedding'}
    c = base.methods(base.metamath(0.2, weight_decay=0.01), head=False, trainable_tokens=tokens)
    return base.published(c, ROWS[choice.row], trainable=6144)
