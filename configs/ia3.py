"""(IA)³: trained vectors that rescale keys, values and the feed-forward activations.

    python -m experiments.main --config configs/ia3.py --workdir runs/ia3
    python -m experiments.main --config configs/ia3.py:paper --workdir runs/paper

Paper: Liu et al., T-Few, 2022 (arXiv:2205.05638), table 4: T0-3B on 32 examples of RTE with both
    extra losses, median over prompts and samples of examples, the interquartile range as the
    spread; 540K parameters.
Hyperparameters: section 3.5 and appendix D: 1,000 steps at 3e-3. Not pretrained on P3, as the
    recipe itself is. The paths of the targets are those of a family which is not built.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.749 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    T0-3B and a reader of RTE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'rte': (3e-3, 1000, 78.0, 2.5)}  # rate, steps; reported, spread


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        c = base.film_reviews(1e-2, choice.tiny)
        vectors = {'targets': r'layers/attention/(key|value)', 'feedforward': r'layers/ffn/output'}
        return base.methods(c, ia3=vectors)
    lr, steps, value, spread = ROWS[choice.row]
    vectors = {'targets': r'.*attn/[kv]', 'feedforward': r'.*/ffn/wo'}
    c = base.methods(base.few_shot(lr, steps), head=False, ia3=vectors)
    return base.published(c, value, spread)
