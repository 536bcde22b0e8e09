"""The model of a row, and the module paths of the parts of a layer that tables name."""

import functools
import json
from typing import Any

import peftjax
from benchmarks import skeletons

Row = dict[str, Any]
"""One of paper_counts.json."""

# The parts of a layer in each family, as regular expressions of module paths.
_BERT = {
    'q': r'layers/attention/query',
    'k': r'layers/attention/key',
    'v': r'layers/attention/value',
    'o': r'layers/attention/output',
    'f1': r'layers/ffn/intermediate',
    'f2': r'layers/ffn/output',
    'attention branch': r'layers/attention/branch',
    'ffn branch': r'layers/ffn/branch',
    'core': r'layers/attention/core',
    'layer': r'layers',
    'embedding': r'embeddings/word_embeddings',
}
_LLAMA = {
    **{letter: rf'layers/self_attn/{letter}_proj' for letter in 'qkvo'},
    **{name: rf'layers/mlp/{name}_proj' for name in ('gate', 'up', 'down')},
    'core': r'layers/self_attn/core',
    'layer': r'layers',
    'embedding': r'embed_tokens',
}
_STACKS = {
    **{letter: rf'.*/layers/(self|cross)_attn/{letter}' for letter in 'qkvo'},
    'f1': r'.*/layers/ffn/wi_\d',
    'f2': r'.*/layers/ffn/wo',
    'attention branch': r'.*/layers/self_attn_branch',
    'every attention branch': r'.*/layers/(self|cross)_attn_branch',
    'ffn branch': r'.*/layers/ffn_branch',
    'core': r'.*/layers/(self|cross)_attn/core',
    'embedding': r'embed',
}
PLACES = {
    **dict.fromkeys(('bert', 'roberta', 'deberta-v2', 'deberta-v3'), _BERT),
    'llama': _LLAMA,
    **dict.fromkeys(('gpt', 't5', 't5.1.1', 'bart'), _STACKS),
    'matrix': {},
}
NORMS = r'.*norm/scale'
# Words in the tables that stand for several matrices.
_WORDS = {
    '2 attn mats': 'q v',
    'all linear': 'q k v o gate up down',
    'all linear except lm_head': 'q k v o gate up down',
    'mlp': 'gate up down',
    'attn': 'q k v o',
    'all 7': 'q k v o gate up down',
}


def model_of(row: Row) -> peftjax.Model:
    """The abstract model of a row, made once."""
    arch = row['model']['arch']
    biased = row['method'].startswith('BitFit (+LN)')
    return _model(f'{arch}+biases' if biased else arch, json.dumps(row['model'], sort_keys=True))


@functools.cache
def _model(arch: str, sizes: str) -> peftjax.Model:
    return skeletons.build(arch, json.loads(sizes))


def at(places: dict[str, str], words: str) -> tuple[str, ...]:
    """Patterns of the places that a table names, `'q,v'` or `'all linear'`."""
    names = _WORDS.get(words, words).replace(',', ' ').split()
    return tuple(places[name] for name in names if name in places)


def targets_of(row: Row, places: dict[str, str]) -> tuple[str, ...]:
    """Patterns of the matrices that a row names; of q and v if it names none."""
    config = row['method_config']
    return at(places, config.get('targets', config.get('t', 'q,v')))
