"""Methods of published tables that train whole leaves, or entries of leaves."""

import numpy as np

import peftjax
from benchmarks.published.places import NORMS, Row, model_of
from peftjax import PeftTransform


def bitfit(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    if '(+LN)' in row['method']:
        return peftjax.select((r'.*/bias', NORMS))
    if 'bias' in config:
        return peftjax.select(r'layers/(attention/query|ffn/intermediate)/bias')
    if row['model']['arch'] == 'roberta':  # without the pooler
        return peftjax.select(r'(embeddings|layers)/.*bias')
    return peftjax.select(r'.*bias')


def top(row: Row, places: dict[str, str]) -> PeftTransform:
    if row['method'] == 'FT-Top2':
        return peftjax.top_layers(2, targets=r'decoder/layers/.*')
    return peftjax.chain(peftjax.top_layers(1, targets=r'layers/.*'), peftjax.select(r'pooler/.*'))


def fish(row: Row, places: dict[str, str]) -> PeftTransform:
    base = peftjax.summary(peftjax.full(), model_of(row)).base
    return peftjax.fish_mask(
        {'embed/embedding': np.arange(int(row['method_config']['keep'] * base))}
    )
