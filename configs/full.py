"""Full fine-tuning: every weight trains.

    python -m experiments.main --config configs/full.py --workdir runs/full
    python -m experiments.main --config configs/full.py:paper --workdir runs/paper

Paper: the baseline of Liu et al., T-Few, 2022 (arXiv:2205.05638), table 4: T0-3B on 32 examples of
    RTE with both extra losses, median over prompts and samples of examples, interquartile range.
Hyperparameters: appendix D: 300 steps at 3e-4.
Data: here film reviews; the rate is the one tuned for configs/lora_sentiment.py:full.
Expected: here accuracy 0.770 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    T0-3B and a reader of RTE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'rte': (3e-4, 300, 79.8, 3.6)}  # rate, steps; reported, spread


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        return base.methods(base.film_reviews(3e-4, choice.tiny), head=False, full={})
    lr, steps, value, spread = ROWS[choice.row]
    c = base.methods(base.few_shot(lr, steps), head=False, full={})
    return base.published(c, value, spread)
