"""Bottlenecks and ReFT of published tables, and the methods compared by the unified view."""

import functools

import peftjax
from benchmarks.published.places import NORMS, Row
from peftjax import PeftTransform


def houlsby(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    branches = places['attention branch'], places['ffn branch']
    adapters = peftjax.houlsby(size=config.get('m', config.get('r')), targets=branches)
    # The paper's own tables also count layer norms, except for the smallest adapters.
    if row['paper'].startswith('Houlsby') and config['m'] > 2:
        return peftjax.chain(adapters, peftjax.select(r'layers/.*norm/(scale|bias)'))
    return adapters


def pfeiffer(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    if 'cfg' in config:  # MAM's: 'Pfeiffer r=600'
        return sizes(row, places)
    return peftjax.pfeiffer(size=config.get('m', config.get('r')), targets=places['ffn branch'])


def adapter(row: Row, places: dict[str, str]) -> PeftTransform:
    """Adapters of T-Few, after feed-forward, and of Compacter, after attention too; with norms."""
    config = row['method_config']
    branches = [places['ffn branch']]
    if 'attn' in config['after']:
        branches.append(places['attention branch'])
    adapters = peftjax.bottleneck(size=config['bottleneck'], targets=tuple(branches))
    return peftjax.chain(adapters, peftjax.select(NORMS))


def compacter(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    # T-Few gives a bottleneck, Compacter a reduction of the width; PHM adapters follow both.
    size = config.get('bottleneck') or row['model']['d_model'] // config['reduction']
    phm = row['method'].startswith('PHM')
    branches = [places['ffn branch']]
    if not row['method'].startswith('Compacter++'):
        branches.append(places['attention branch'])
    adapters = peftjax.compacter(
        size=size,
        terms=config['n'],
        rank=None if phm else 1,
        shared_rule=config.get('shared_rule', not phm),
        targets=tuple(branches),
    )
    return peftjax.chain(adapters, peftjax.select(NORMS))


def loreft(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    tied = config.get('tied') is True
    return peftjax.loreft(
        rank=config['r'],
        positions='f1+l1' if tied else 'f1',
        tied=tied,
        targets=places['layer'],
    )


def sizes(row: Row, places: dict[str, str]) -> PeftTransform:
    """Rows of MAM such as 'PA(attn 30)+PA(ffn 512)', 'Prefix30+LoRA(ffn 102)', 'SA(ffn) r=200'."""
    text = row['method_config']['cfg']
    numbers = [int(word) for word in ''.join(c if c.isdigit() else ' ' for c in text).split()]
    attention, ffn = places['every attention branch'], places['ffn branch']
    kernels = places['f1'], places['f2']
    prefix = functools.partial(peftjax.prefix_tuning, targets=places['core'])
    if text.startswith('MAM'):
        return peftjax.mam(
            cores=places['core'],
            branches=ffn,
            num_virtual_tokens=numbers[0],
            projection=None,
            size=numbers[1],
        )
    if text.startswith('PA(attn'):
        return peftjax.chain(
            peftjax.parallel_adapter(size=numbers[0], targets=attention),
            peftjax.parallel_adapter(size=numbers[1], targets=ffn),
        )
    if text.startswith('Prefix30'):
        return peftjax.chain(
            prefix(num_virtual_tokens=numbers[0]), peftjax.lora(rank=numbers[1], targets=kernels)
        )
    if text.startswith('LoRA'):
        return peftjax.lora(rank=numbers[0], targets=kernels)
    if text.startswith('PA(ffn)'):
        return peftjax.parallel_adapter(size=numbers[0], targets=ffn)
    return peftjax.bottleneck(size=numbers[0], targets=attention if 'attn' in text else ffn)
