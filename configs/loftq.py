"""LoftQ: a base in four bits, and LoRA that starts from what they lost.

    python -m experiments.main --config configs/loftq.py --workdir runs/loftq
    python -m experiments.main --config configs/loftq.py:paper --workdir runs/paper

Paper: Li et al., LoftQ, 2023 (arXiv:2310.08659): LLaMA-2 tuned on GSM8K in 4 bits, 35.0 (7B; LoRA
    on 16 bits 36.9) and 45.0 (13B; 43.1), as the README of the authors' code has them, no spread
    given.
Hyperparameters: the authors' scripts/train_gsm8k.sh, for the 7B: NF4, rank 64, 6 epochs at 3e-4,
    batches of 64, weight decay 0.1, cosine with 3 % warm-up; alpha 16 and all linear layers are
    those of its QLoRA row, that LoftQ has the same is not verified. 5 turns as in the README. The
    authors keep the scales of blocks in full; here they are quantised as well.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: not measured; the rows of the paper are not run: they need the weights of LLaMA-2.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'7b': 35.0, '13b': 45.0}  # reported


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    targets = r'layers/.*/kernel'
    if not choice.paper:
        c = base.film_reviews(1e-3, choice.tiny)
        return base.methods(c, loftq={'rank': 8, 'alpha': 16.0, 'targets': targets})
    c = base.text(f'meta-llama/Llama-2-{choice.row}-hf', 'gsm8k', 3e-4, 64, '6 epochs', (512,))
    c.adamw.weight_decay, c.schedule, c.warmup = 0.1, 'cosine', 0.03
    loftq = {'rank': 64, 'alpha': 16.0, 'targets': targets}
    return base.published(base.methods(c, head=False, loftq=loftq), ROWS[choice.row])
