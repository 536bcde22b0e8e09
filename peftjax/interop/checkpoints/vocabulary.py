"""Checkpoints with another number of tokens, or with a head that is untied from the table."""

import dataclasses

import numpy as np

from peftjax.interop.checkpoints.checkpoint import Checkpoint
from peftjax.interop.files.tensors import Header, Packed, Tensors
from peftjax.models.config_fields import greatest

HEAD = 'lm_head/kernel'


def resized(checkpoint: Checkpoint, size: int | None, cut: bool) -> Checkpoint:
    r"""The checkpoint with `size` tokens: each table [V, D] keeps its rows and gets new ones.

    Each new row is the mean of all rows of the file, :math:`\frac1V \sum_v E_v`, in float32.
    transformers (5.23, `resize_token_embeddings` with `mean_resizing`) draws it from a normal
    distribution around that mean, with 1e-9 times the covariance of the rows.

    cut: allows a size below that of the checkpoint, which drops the last rows.

    Raises:
        ValueError: a size that no vocabulary has; a smaller size without `cut`; a model of images.
    """
    if size is None:
        return checkpoint
    if type(size) is not int or not 1 <= size <= greatest('vocab_size'):
        raise ValueError(f'vocab_size {size!r} is not a number of tokens: write 1 or more')
    names = _tables(checkpoint)
    if not names:
        raise ValueError(
            f'vocab_size {size} is for models of text, but this is a '
            f'{type(checkpoint.config).__name__}: leave it out'
        )
    old = checkpoint.config.vocab_size
    if size < old and not cut:
        raise ValueError(
            f'vocab_size {size} would drop the last {old - size} of {old} tokens; write '
            f'cut_vocabulary=True to drop them, or a vocab_size of at least {old}'
        )
    config = dataclasses.replace(checkpoint.config, vocab_size=size)
    tensors = checkpoint.tensors
    if tensors is not None and size != old:
        tensors = _with_rows(tensors, frozenset(names.values()), size)
    return checkpoint._replace(config=config, tensors=tensors)


def untied(checkpoint: Checkpoint, tie: bool | None) -> Checkpoint:
    """The checkpoint, with a head that is a copy of the table of tokens if `tie` is False.

    Raises:
        ValueError: `tie=False` for a model that ties nothing; `tie=True` for a head that the
            checkpoint does not tie.
    """
    config = checkpoint.config
    if tie is None or (tie and getattr(config, 'tie_word_embeddings', False)):
        return checkpoint
    names = _tables(checkpoint)
    if tie or HEAD not in names or not config.tie_word_embeddings:
        raise ValueError(
            f'tie={tie} does not suit this {type(config).__name__}: only the head of a decoder '
            'that is tied to its table of tokens can be untied; leave tie out'
        )
    head, table = names[HEAD], next(name for path, name in names.items() if path != HEAD)
    config = dataclasses.replace(config, tie_word_embeddings=False)
    tensors = checkpoint.tensors
    if tensors is not None and table in tensors.headers:
        tensors = _with_copy(tensors, table, head)
    return checkpoint._replace(config=config, tensors=tensors)


def _tables(checkpoint: Checkpoint) -> dict[str, str]:
    """Tensors with a row for each token, by the paths of their leaves."""
    wanted = checkpoint.family.vocabulary
    return {rule.ours: rule.theirs for rule in checkpoint.names if rule.ours in wanted}


def _with_rows(tensors: Tensors, tables: frozenset[str], size: int) -> Tensors:
    def header(name: str, header: Header) -> Header:
        return header._replace(shape=(size, *header.shape[1:])) if name in tables else header

    def read(name: str) -> np.ndarray:
        values = tensors.read(name)
        if name not in tables or len(values) >= size:
            return values[:size] if name in tables else values
        values = values.astype(np.promote_types(values.dtype, np.float32))
        new = np.broadcast_to(
            values.mean(0, dtype=np.float64), (size - len(values), *values.shape[1:])
        )
        return np.concatenate([values, new.astype(values.dtype)])

    def packed(name: str) -> Packed | None:
        return None if name in tables else tensors.packed(name)

    headers = {name: header(name, each) for name, each in tensors.headers.items()}
    return tensors._replace(headers=headers, read=read, packed=packed)


def _with_copy(tensors: Tensors, table: str, head: str) -> Tensors:
    def source(name: str) -> str:
        return table if name == head else name

    return tensors._replace(
        headers={**tensors.headers, head: tensors.headers[table]},
        read=lambda name: tensors.read(source(name)),
        packed=lambda name: tensors.packed(source(name)),
    )
