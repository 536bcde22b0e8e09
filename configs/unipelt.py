"""UniPELT: LoRA, a prefix and an adapter, each behind a gate.

    python -m experiments.main --config configs/unipelt.py --workdir runs/unipelt
    python -m experiments.main --config configs/unipelt.py:paper,row=sst2 --workdir runs/paper

Paper: Mao et al., UniPELT, 2021 (arXiv:2110.07577), BERT-base on GLUE, whose numbers could not be
    read.
Hyperparameters: AdapterHub's configuration of this name: 10 vectors from a network of width 800, a
    bottleneck of a sixteenth, rank 8, LoRA's scale replaced by its gate. Rate, batch and epochs are
    assumed: those of the paper were not found.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.758 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need a reader of GLUE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'sst2': 128, 'mnli': 128}  # tokens


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        return base.methods(base.film_reviews(1e-3, choice.tiny), unipelt=_unipelt(96, 24))
    c = base.glue('google-bert/bert-base-uncased', choice.row, 1e-4, 16, '50 epochs', 128)
    return base.methods(c, unipelt=_unipelt(800, 48))


def _unipelt(projection: int, size: int) -> dict:
    return {
        'num_virtual_tokens': 10,
        'projection': projection,
        'rank': 8,
        'size': size,
        'cores': r'layers/attention/core',
        'kernels': r'layers/attention/(query|value)',
        'branches': r'layers/ffn/branch',
    }
