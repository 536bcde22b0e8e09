"""EVA: LoRA that starts from the directions in which a layer's inputs vary most.

    python -m experiments.main --config configs/eva.py --workdir runs/eva
    python -m experiments.main --config configs/eva.py:paper,row=commonsense --workdir runs/paper

Paper: Paischer et al., EVA, 2024 (arXiv:2410.07170). Its numbers could not be read and are not
    given here.
Hyperparameters: the defaults of the EVA authors' scripts (bash/run_train.sh, README.md): rank 16,
    rate 5e-4, batches of 4 by 2, one epoch, cosine with 3 % warm-up, no weight decay, all linear
    layers; 1024 tokens (MetaMathQA 512). The directions are taken from batches of 16 until they
    settle; here from a given number of batches. The ranks are not redistributed: a stack of layers
    has one. Alpha is not stated there; 1 here.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.759 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
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
        c = base.film_reviews(1e-3, choice.tiny)
        c = base.methods(c, lora={'rank': 8, 'alpha': 8.0, 'targets': targets})
        c.eva = ConfigDict({'rank': 8, 'targets': targets, 'batches': 2 if choice.tiny else 16})
    else:
        length = ROWS[choice.row]
        c = base.text('meta-llama/Llama-2-7b-hf', choice.row, 5e-4, 8, '1 epoch', (length,))
        c.schedule, c.warmup = 'cosine', 0.03
        c = base.methods(c, head=False, lora={'rank': 16, 'alpha': 1.0, 'targets': targets})
        c.eva = ConfigDict({'rank': 16, 'targets': targets, 'batches': 64})
    c.found.lora = ConfigDict({'init': 'eva'})
    return c
