"""Prompts and prefixes of published tables."""

import peftjax
from benchmarks.published.places import Row
from peftjax import PeftTransform


def prompt(length: int, places: dict[str, str]) -> PeftTransform:
    """This number of trained tokens."""
    return peftjax.prompt_tuning(num_virtual_tokens=length, targets=places['embedding'])


def tokens(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    if 'lp' in config:
        return prompt(config['lp'] + config['li'], places)
    # Two prompts, for encoder and decoder, count as one prompt of twice the length.
    return prompt(config['tokens'] * (2 if 'decoder' in config.get('where', '') else 1), places)


def prefix(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    length = config.get('len', config.get('tokens'))
    if 'cfg' in config:  # 'Prefix l=200'
        length = int(config['cfg'].split('=')[1].split()[0])
    if isinstance(length, str):  # T-Few's: a prompt of 2 tokens and a target of 2
        length = 2
    return peftjax.prefix_tuning(num_virtual_tokens=length, targets=places['core'])


def p_tuning(row: Row, places: dict[str, str]) -> PeftTransform:
    return peftjax.p_tuning(
        num_virtual_tokens=row['method_config']['tokens'],
        hidden=row['model']['d_model'],
        targets=places['embedding'],
    )
