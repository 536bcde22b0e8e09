"""Tuning the top layers: the last layers of the network train whole.

    python -m experiments.main --config configs/top_layers.py --workdir runs/top_layers
    python -m experiments.main --config configs/top_layers.py:paper --workdir runs/paper

Paper: a baseline of Hu et al., LoRA, 2021 (arXiv:2106.09685), table 13: GPT-2 medium, the last two
    layers, on DART; 24M parameters.
Hyperparameters: appendix D.3 and Li and Liang (arXiv:2101.00190): 5 epochs, linear; batch 10 and
    rate 5e-5 are the defaults of the latter's gpt2/train_e2e.py and not verified for this baseline.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.738 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    GPT-2 medium and a reader of DART.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'dart': (2, 41.0)}  # layers; reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        return base.methods(base.film_reviews(3e-4, choice.tiny), top_layers={'count': 1})
    count, value = ROWS[choice.row]
    c = base.text('openai-community/gpt2-medium', 'dart', 5e-5, 10, '5 epochs', (512,))
    c = base.methods(c, head=False, top_layers={'count': count})
    return base.published(c, value, metric='BLEU')
