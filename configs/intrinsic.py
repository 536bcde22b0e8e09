"""Intrinsic dimension: one small vector, projected at random to all weights.

    python -m experiments.main --config configs/intrinsic.py --workdir runs/intrinsic
    python -m experiments.main --config configs/intrinsic.py:paper,row=d500k --workdir runs/paper

Paper: Aghajanyan et al., Intrinsic Dimensionality, 2020 (arXiv:2012.13255), whose numbers could not
    be read. Numbers: T0-3B on 32 examples of RTE in Liu et al., T-Few, 2022 (arXiv:2205.05638),
    table 4, with both extra losses, median over prompts and samples of examples, interquartile
    range, Intrinsic SAID; its updates of matrices are outer products there.
Hyperparameters: T-Few's appendix D: 3,000 steps at 3e-2, 500,000 or 20,000 dimensions. Compacter's
    seq2seq/configs/intrinsic_said.json has the same rate and 20,000 dimensions for T5-base, batch
    100, 20 epochs.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.733 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    T0-3B and a reader of RTE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'d500k': (500_000, 69.0, 7.6), 'd20k': (20_000, 66.1, 5.4)}  # dimensions; reported, spread


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(1e-2, choice.tiny)
        return base.methods(
            c,
            intrinsic={'dimension': 2000, 'targets': r'layers/.*/kernel', 'structure_aware': True},
        )
    dimensions, value, spread = ROWS[choice.row]
    intrinsic = {'dimension': dimensions, 'targets': r'.*/kernel', 'structure_aware': True}
    c = base.methods(base.few_shot(3e-2, 3000), head=False, intrinsic=intrinsic)
    return base.published(c, value, spread)
