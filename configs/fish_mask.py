"""FISH mask: the entries of largest Fisher information train.

    python -m experiments.main --config configs/fish_mask.py --workdir runs/fish_mask
    python -m experiments.main --config configs/fish_mask.py:paper,row=k2 --workdir runs/paper

Paper: Sung et al., FISH Mask, 2021 (arXiv:2111.09839), whose numbers could not be read (the
    authors' README: 0.5 % of BERT-large by 1,024 samples). Numbers: T0-3B on 32 examples of RTE in
    Liu et al., T-Few, 2022 (arXiv:2205.05638), table 4, with both extra losses, median over prompts
    and samples of examples, interquartile range.
Hyperparameters: T-Few's appendix D: 0.2 % or 0.02 % of the parameters, 1,500 steps at 3e-4.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.737 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    T0-3B and a reader of RTE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'k2': (0.002, 76.9, 4.7), 'k02': (0.0002, 75.5, 5.4)}  # share; reported, spread


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    fisher = {'examples': 256, 'share': 0.005, 'targets': r'(embeddings|layers)/.*'}
    if not choice.paper:
        c = base.methods(base.film_reviews(1e-3, choice.tiny), fish_mask={})
        if choice.tiny:
            fisher['examples'] = 8
    else:
        share, value, spread = ROWS[choice.row]
        fisher = {'examples': 32, 'share': share, 'targets': r'.*'}
        c = base.methods(base.few_shot(3e-4, 1500), head=False, fish_mask={})
        c = base.published(c, value, spread)
    c.found.fish_mask = ConfigDict({'positions': 'fisher'})
    c.fisher = ConfigDict(fisher)
    return c
