"""OFT: each weight turned by a rotation of small blocks.

    python -m experiments.main --config configs/oft.py --workdir runs/oft
    python -m experiments.main --config configs/oft.py:paper --workdir runs/paper

Paper: Qiu et al., OFT, 2023 (arXiv:2306.07280), is about images; as OFT (b = 16) in Liu et al.,
    BOFT, 2023 (arXiv:2311.06243), table 1: DeBERTaV3-base on the development sets of GLUE, mean of
    5 seeds, MNLI matched.
Hyperparameters: BOFT's table 7, OFT (16): batch 32, on every linear layer. Its multiplicative
    dropout is not built. The epochs of MNLI, MRPC, CoLA, QNLI and QQP cannot be told apart in the
    copy that was read, and those rows are left out, as is RTE's; the schedule follows AdaLoRA,
    linear. The paths are BERT's.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.766 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    DeBERTaV3-base, whose family is not built, and a reader of GLUE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'stsb': (7e-4, 11, 128, 91.91)}  # rate, epochs, length; reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    oft = {'block_size': 16, 'targets': r'layers/.*/kernel'}
    if not choice.paper:
        return base.methods(base.film_reviews(1e-3, choice.tiny), oft=oft)
    lr, epochs, length, value = ROWS[choice.row]
    c = base.glue('microsoft/deberta-v3-base', choice.row, lr, 32, f'{epochs} epochs', length)
    return base.published(base.methods(c, oft=oft), value)
