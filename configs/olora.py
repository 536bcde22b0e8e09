"""OLoRA: LoRA that starts from the QR decomposition of each weight.

    python -m experiments.main --config configs/olora.py --workdir runs/olora
    python -m experiments.main --config configs/olora.py:paper,row=commonsense --workdir runs/paper

Paper: Büyükakyüz, OLoRA, 2024 (arXiv:2406.01775). Its hyperparameters and numbers could not be
    read; these runs are its part in the comparison of Paischer et al., EVA, 2024
    (arXiv:2410.07170), with no number given here.
Hyperparameters: the defaults of the EVA authors' scripts (bash/run_train.sh, README.md): rank 16,
    rate 5e-4, batches of 4 by 2, one epoch, cosine with 3 % warm-up, no weight decay, all linear
    layers; 1024 tokens (MetaMathQA 512). Alpha is not stated there; 1 here.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.753 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    LLaMA-2-7B and readers of the tasks.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'commonsense': 1024, 'metamath': 512}  # length


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    targets = r'layers/.*/kernel'
    if not choice.paper:
        c = base.film_reviews(3e-4, choice.tiny)
        return base.methods(c, lora={'rank': 8, 'alpha': 8.0, 'init': 'olora', 'targets': targets})
    c = base.text('meta-llama/Llama-2-7b-hf', choice.row, 5e-4, 8, '1 epoch', (ROWS[choice.row],))
    c.schedule, c.warmup = 'cosine', 0.03
    olora = {'rank': 16, 'alpha': 1.0, 'init': 'olora', 'targets': targets}
    return base.methods(c, head=False, lora=olora)
