"""Methods of published tables that act on weights."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import peftjax
from benchmarks.published.places import NORMS, Row, at, model_of, targets_of
from benchmarks.published.prompts import prompt
from peftjax import PeftTransform


def lora(row: Row, places: dict[str, str]) -> PeftTransform | None:
    config = row['method_config']
    if 'PL' in row['method']:
        return None
    if 'cfg' in config:
        # 'q=v=32 + lp=8,li=4 embed': prefixes and infixes of trained embeddings.
        ranks, _, fixes = config['cfg'].partition(' + ')
        length = sum(int(part.split('=')[1]) for part in fixes.removesuffix(' embed').split(','))
        return peftjax.chain(_ranked(ranks, places), prompt(length, places))
    if 'ranks' in config:
        return _ranked(config['ranks'], places)
    words = config.get('targets', config.get('t'))
    if words == 'unembed':
        tied = row['model']['name'] == 'llama-3.2-1b'
        return peftjax.lora(rank=1, targets='embed_tokens' if tied else 'lm_head')
    if '(+LN)' in row['method']:
        kernels = at(places, 'q k v o f1 f2')
        return peftjax.chain(peftjax.lora(rank=config['r'], targets=kernels), peftjax.select(NORMS))
    return peftjax.lora(rank=config['r'], targets=at(places, words))


def _ranked(ranks: str, places: dict[str, str]) -> PeftTransform:
    """`'q=v=8'` or `'qkvo=2'`."""
    *letters, rank = ranks.split('=')
    return peftjax.lora(rank=int(rank), targets=tuple(places[each] for each in ''.join(letters)))


def psoft(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    found = jax.eval_shape(
        functools.partial(
            peftjax.principal_subspaces, rank=config['r'], targets=at(places, config['t'])
        ),
        model_of(row),
    )
    # Zeros that use no memory.
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), found)
    return peftjax.psoft(zeros)


def vblora(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    vectors, length = map(int, config['bank'].split('x'))
    return peftjax.vblora(
        rank=config['r'],
        num_vectors=vectors,
        vector_length=length,
        targets=at(places, config['t']),
    )


def ia3(row: Row, places: dict[str, str]) -> PeftTransform:
    words = row['method_config'].get('t', 'k,v,f2')
    if words == 'all 7':
        return peftjax.ia3(targets=at(places, 'q k v o'), feedforward=at(places, 'gate up down'))
    return peftjax.ia3(targets=at(places, 'k v'), feedforward=at(places, 'down f2'))


def oft(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    if row['model']['arch'] == 'matrix':
        return peftjax.oft(
            block_size=row['model']['d_model'] // config['r_blocks'], targets='kernel'
        )
    return peftjax.oft(block_size=config['b'], targets=targets_of(row, places))


def boft(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    library = row['paper'].startswith('HF')  # that library trains whole blocks and a scale
    return peftjax.boft(
        block_size=config['b'],
        factors=config['m'],
        scale=library,
        whole_blocks=library,
        targets=targets_of(row, places),
    )


def of_rank(method: Callable[..., PeftTransform], name: str = 'rank', key: str = 'r', **more: Any):
    """A method whose rows give one size, under `key`."""

    def make(row: Row, places: dict[str, str]) -> PeftTransform:
        value = row['method_config'][key]
        return method(**{name: value}, targets=targets_of(row, places), **more)

    return make
