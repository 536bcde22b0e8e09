"""Tuning layer norms: their scales and offsets train, and nothing else.

    python -m experiments.main --config configs/layernorm.py --workdir runs/layernorm
    python -m experiments.main --config configs/layernorm.py:paper --workdir runs/paper

Paper: a baseline of Liu et al., T-Few, 2022 (arXiv:2205.05638), table 4: T0-3B on 32 examples of
    RTE with both extra losses, median over prompts and samples of examples, interquartile range;
    250K parameters.
Hyperparameters: appendix D: 300 steps at 3e-4.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.745 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    T0-3B and a reader of RTE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'rte': (3e-4, 300, 71.8, 0.4)}  # rate, steps; reported, spread


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    norms = r'.*layer_norm/.*'
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        return base.methods(c, head=False, select={'targets': (norms, r'classifier/.*')})
    lr, steps, value, spread = ROWS[choice.row]
    c = base.methods(base.few_shot(lr, steps), head=False, select={'targets': norms})
    return base.published(c, value, spread)
