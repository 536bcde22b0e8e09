"""Counts what trains in published tables, by the methods of peftjax on abstract models.

python -m benchmarks.paper_counts          # every row, ours beside theirs
python -m benchmarks.paper_counts --write  # into benchmarks/README.md, what differs in full

Nothing is allocated, not for GPT-3 either. paper_counts.json holds the published numbers; the rows
under `do_not_reproduce` are those that their papers' own descriptions do not give.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app

import peftjax
from benchmarks import options, report, skeletons
from peftjax import PeftTransform

FILE = Path(__file__).with_name('paper_counts.json')
Row = dict[str, Any]

# Where the parts of a layer stand in each family: regular expressions of module paths.
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
_PLACES = {
    **dict.fromkeys(('bert', 'roberta', 'deberta-v2', 'deberta-v3'), _BERT),
    'llama': _LLAMA,
    **dict.fromkeys(('gpt', 't5', 't5.1.1', 'bart'), _STACKS),
    'matrix': {},
}
_NORMS = r'.*norm/scale'
# Words of the tables for several matrices at once.
_WORDS = {
    '2 attn mats': 'q v',
    'all linear': 'q k v o gate up down',
    'all linear except lm_head': 'q k v o gate up down',
    'mlp': 'gate up down',
    'attn': 'q k v o',
    'all 7': 'q k v o gate up down',
}


class Count(NamedTuple):
    """A row and what we count; None where peftjax has no such method."""

    row: Row
    ours: int | None

    @property
    def equal(self) -> bool:
        return self.ours == self.row['computed_trainable']


def count(row: Row) -> Count:
    """What trains in the method of a row on its model, by `peftjax.summary`."""
    make = next((make for name, make in _METHODS.items() if row['method'].startswith(name)), None)
    if make is None:
        return Count(row, None)
    arch = row['model']['arch']
    biased = row['method'].startswith('BitFit (+LN)')
    model = _model(f'{arch}+biases' if biased else arch, json.dumps(row['model'], sort_keys=True))
    transform = make(row, _PLACES[arch])
    if transform is None:
        return Count(row, None)
    found = peftjax.summary(transform, model)
    if row['paper'].startswith('MAM'):  # counts the matrices of adapters without their biases
        rows = (each for each in found.leaves if not each[0].endswith('_bias'))
        return Count(row, sum(each[3] for each in rows))
    return Count(row, found.trainable)


@functools.cache
def _model(arch: str, sizes: str) -> peftjax.Model:
    return skeletons.build(arch, json.loads(sizes))


def read() -> dict[str, list[Row]]:
    """The rows of paper_counts.json: `reproduce` and `do_not_reproduce`."""
    return json.loads(FILE.read_text(encoding='utf-8'))


def _at(places: dict[str, str], words: str) -> tuple[str, ...]:
    """Patterns of the places that a table names, `'q,v'` or `'all linear'`."""
    names = _WORDS.get(words, words).replace(',', ' ').split()
    return tuple(places[name] for name in names if name in places)


def _targets(row: Row, places: dict[str, str]) -> tuple[str, ...]:
    config = row['method_config']
    return _at(places, config.get('targets', config.get('t', 'q,v')))


def _lora(row: Row, places: dict[str, str]) -> PeftTransform | None:
    config = row['method_config']
    if 'PL' in row['method']:
        return None
    if 'cfg' in config:
        # 'q=v=32 + lp=8,li=4 embed': prefixes and infixes of trained embeddings.
        ranks, _, prompt = config['cfg'].partition(' + ')
        length = sum(int(part.split('=')[1]) for part in prompt.removesuffix(' embed').split(','))
        return peftjax.chain(_ranked(ranks, places), _prompt(length, places))
    if 'ranks' in config:
        return _ranked(config['ranks'], places)
    words = config.get('targets', config.get('t'))
    if words == 'unembed':
        tied = row['model']['name'] == 'llama-3.2-1b'
        return peftjax.lora(rank=1, targets='embed_tokens' if tied else 'lm_head')
    if '(+LN)' in row['method']:
        kernels = _at(places, 'q k v o f1 f2')
        lora = peftjax.lora(rank=config['r'], targets=kernels)
        return peftjax.chain(lora, peftjax.select(_NORMS))
    return peftjax.lora(rank=config['r'], targets=_at(places, words))


def _ranked(ranks: str, places: dict[str, str]) -> PeftTransform:
    """`'q=v=8'` or `'qkvo=2'`."""
    *letters, rank = ranks.split('=')
    return peftjax.lora(rank=int(rank), targets=tuple(places[each] for each in ''.join(letters)))


def _prompt(length: int, places: dict[str, str]) -> PeftTransform:
    return peftjax.prompt_tuning(num_virtual_tokens=length, targets=places['embedding'])


def _tokens(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    if 'lp' in config:
        return _prompt(config['lp'] + config['li'], places)
    # One prompt each for an encoder and a decoder is twice as long a prompt.
    return _prompt(config['tokens'] * (2 if 'decoder' in config.get('where', '') else 1), places)


def _prefix(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    length = config.get('len', config.get('tokens'))
    if 'cfg' in config:  # 'Prefix l=200'
        length = int(config['cfg'].split('=')[1].split()[0])
    if isinstance(length, str):  # T-Few's: a prompt of 2 tokens and a target of 2
        length = 2
    return peftjax.prefix_tuning(num_virtual_tokens=length, targets=places['core'])


def _houlsby(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    branches = places['attention branch'], places['ffn branch']
    adapters = peftjax.houlsby(size=config.get('m', config.get('r')), targets=branches)
    # The paper's own tables train layer norms as well, but for the smallest adapters.
    if row['paper'].startswith('Houlsby') and config['m'] > 2:
        return peftjax.chain(adapters, peftjax.select(r'layers/.*norm/(scale|bias)'))
    return adapters


def _pfeiffer(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    if 'cfg' in config:  # MAM's: 'Pfeiffer r=600'
        return _sizes(row, places)
    return peftjax.pfeiffer(size=config.get('m', config.get('r')), targets=places['ffn branch'])


def _adapter(row: Row, places: dict[str, str]) -> PeftTransform:
    """T-Few's, behind feed-forward sublayers, and Compacter's, behind attention too; with norms."""
    config = row['method_config']
    branches = [places['ffn branch']]
    if 'attn' in config['after']:
        branches.append(places['attention branch'])
    adapters = peftjax.bottleneck(size=config['bottleneck'], targets=tuple(branches))
    return peftjax.chain(adapters, peftjax.select(_NORMS))


def _compacter(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    # T-Few's have a reduction for a width, and PHM adapters of the paper stand behind both.
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
    return peftjax.chain(adapters, peftjax.select(_NORMS))


def _psoft(row: Row, places: dict[str, str]) -> PeftTransform:
    model = _model(row['model']['arch'], json.dumps(row['model'], sort_keys=True))
    config = row['method_config']
    found = jax.eval_shape(
        functools.partial(
            peftjax.principal_subspaces, rank=config['r'], targets=_at(places, config['t'])
        ),
        model,
    )
    # Zeros that take no memory.
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), found)
    return peftjax.psoft(zeros)


def _vblora(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    vectors, length = map(int, config['bank'].split('x'))
    return peftjax.vblora(
        rank=config['r'],
        num_vectors=vectors,
        vector_length=length,
        targets=_at(places, config['t']),
    )


def _sizes(row: Row, places: dict[str, str]) -> PeftTransform:
    """The unified view's: 'PA(attn 30)+PA(ffn 512)', 'Prefix30+LoRA(ffn 102)', 'SA(ffn) r=200'."""
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


def _bitfit(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    if '(+LN)' in row['method']:
        return peftjax.select((r'.*/bias', _NORMS))
    if 'bias' in config:
        return peftjax.select(r'layers/(attention/query|ffn/intermediate)/bias')
    if row['model']['arch'] == 'roberta':  # without the pooler
        return peftjax.select(r'(embeddings|layers)/.*bias')
    return peftjax.select(r'.*bias')


def _top(row: Row, places: dict[str, str]) -> PeftTransform:
    if row['method'] == 'FT-Top2':
        return peftjax.top_layers(2, targets=r'decoder/layers/.*')
    return peftjax.chain(peftjax.top_layers(1, targets=r'layers/.*'), peftjax.select(r'pooler/.*'))


def _loreft(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    tied = config.get('tied') is True
    return peftjax.loreft(
        rank=config['r'],
        positions='f1+l1' if tied else 'f1',
        tied=tied,
        targets=places['layer'],
    )


def _fish(row: Row, places: dict[str, str]) -> PeftTransform:
    sizes = json.dumps(row['model'], sort_keys=True)
    model = _model(row['model']['arch'], sizes)
    base = peftjax.summary(peftjax.full(), model).base
    return peftjax.fish_mask(
        {'embed/embedding': np.arange(int(row['method_config']['keep'] * base))}
    )


def _ia3(row: Row, places: dict[str, str]) -> PeftTransform:
    words = row['method_config'].get('t', 'k,v,f2')
    if words == 'all 7':
        return peftjax.ia3(targets=_at(places, 'q k v o'), feedforward=_at(places, 'gate up down'))
    return peftjax.ia3(targets=_at(places, 'k v'), feedforward=_at(places, 'down f2'))


def _oft(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    if row['model']['arch'] == 'matrix':
        return peftjax.oft(
            block_size=row['model']['d_model'] // config['r_blocks'], targets='kernel'
        )
    return peftjax.oft(block_size=config['b'], targets=_targets(row, places))


def _boft(row: Row, places: dict[str, str]) -> PeftTransform:
    config = row['method_config']
    library = row['paper'].startswith('HF')  # trains whole blocks, and a scale
    return peftjax.boft(
        block_size=config['b'],
        factors=config['m'],
        scale=library,
        whole_blocks=library,
        targets=_targets(row, places),
    )


def _p_tuning(row: Row, places: dict[str, str]) -> PeftTransform:
    return peftjax.p_tuning(
        num_virtual_tokens=row['method_config']['tokens'],
        hidden=row['model']['d_model'],
        targets=places['embedding'],
    )


def _of_rank(method: Callable[..., PeftTransform], name: str = 'rank', key: str = 'r', **more: Any):
    """A method whose row gives one size."""

    def make(row: Row, places: dict[str, str]) -> PeftTransform:
        value = row['method_config'][key]
        return method(**{name: value}, targets=_targets(row, places), **more)

    return make


# By the start of the tables' names, the first that fits.
_METHODS: dict[str, Callable[[Row, dict[str, str]], PeftTransform | None]] = {
    'full FT': lambda row, places: peftjax.full(),
    'FT-Top2': _top,
    'top layer FT': _top,
    'LoRA(ffn)': _sizes,
    'LoRA-FA': _of_rank(peftjax.lora_fa),
    'LoRA': _lora,
    'DyLoRA/LoRA': _lora,
    'rsLoRA': _of_rank(peftjax.lora, rslora=True),
    'DoRA': _of_rank(peftjax.dora),
    'AdaLoRA': _of_rank(peftjax.adalora, 'init_rank', 'init_r'),
    'VeRA': _of_rank(peftjax.vera),
    'FourierFT': _of_rank(peftjax.fourierft, 'n_frequency', 'n'),
    'LoHa': _of_rank(peftjax.loha),
    'LoKr': _of_rank(peftjax.lokr, factor=4),
    'HiRA': _of_rank(peftjax.hira),
    'SHiRA': _of_rank(peftjax.shira),
    'MiSS': _of_rank(peftjax.miss),
    'C3A': _of_rank(peftjax.c3a, 'block_size', 'b'),
    'RandLoRA': _of_rank(peftjax.randlora),
    'OFT': _oft,
    'BOFT': _boft,
    'LoReFT': _loreft,
    'AdapterP': _pfeiffer,
    'AdapterH': _houlsby,
    'Adapters': _houlsby,
    'Houlsby': _houlsby,
    'Pfeiffer': _pfeiffer,
    'Adapter': _adapter,
    'Compacter': _compacter,
    'PHM-Adapter': _compacter,
    'Adaption prompt': lambda row, places: peftjax.adaption_prompt(
        num_virtual_tokens=row['method_config']['len'], targets=places['core']
    ),
    'RoAd-2': lambda row, places: peftjax.road(variant=2, targets=_targets(row, places)),
    'VB-LoRA': _vblora,
    'PSOFT': _psoft,
    'DeLoRA': _of_rank(peftjax.delora),
    'Intrinsic-SAID': lambda row, places: peftjax.intrinsic(
        dimension=row['method_config']['dim'], structure_aware=True
    ),
    'BitFit': _bitfit,
    'LayerNorm': lambda row, places: peftjax.select(_NORMS),
    'LN tuning': lambda row, places: peftjax.select(_NORMS),
    'FishMask': _fish,
    '(IA)3': _ia3,
    'PrefixEmbed': _tokens,
    'PrefixLayer': lambda row, places: None,
    'Prefix30': _sizes,
    'Prefix': _prefix,
    'PreLayer/Prefix': _prefix,
    'Prompt tuning': _tokens,
    'prompt': _tokens,
    'Prompt': _tokens,
    'P-Tuning': _p_tuning,
    'Trainable tokens': lambda row, places: peftjax.trainable_tokens(
        range(row['method_config']['n']), targets='embed_tokens/embedding'
    ),
    'SA(': _sizes,
    'PA(': _sizes,
    'MAM': _sizes,
}


def table(counts: Sequence[Count]) -> list[tuple[str, ...]]:
    """Rows to print: ours, what the paper's description gives, what it prints."""
    head = ('paper', 'method', 'model', 'ours', 'by its formula', 'printed')
    return [
        head,
        *(
            (
                row['paper'],
                row['method'],
                row['model']['name'],
                'no method' if ours is None else f'{ours:,}',
                f'{row["computed_trainable"]:,}',
                row['published_trainable'],
            )
            for row, ours in counts
        ),
    ]


def main(argv: Sequence[str]) -> None:
    del argv
    found = {name: [count(row) for row in rows] for name, rows in read().items()}
    for name, counts in found.items():
        print(f'{name}\n{report.plain(table(counts))}')
    lines = [
        f'`{name}`: {len(counts)} rows, {sum(each.equal for each in counts)} equal, '
        f'{sum(each.ours is None for each in counts)} without a method here.'
        for name, counts in found.items()
    ]
    print('\n'.join(lines))
    if options.WRITE.value:
        differing = [each for counts in found.values() for each in counts if not each.equal]
        printed = report.markdown(table(found['do_not_reproduce']))
        report.write_section(
            'counts',
            '\n\n'.join(
                [
                    '\n'.join(f'- {line}' for line in lines),
                    'Not equal to the formula of their papers:',
                    report.markdown(table(differing)),
                    'Printed numbers that the papers do not explain, beside ours:',
                    printed,
                ]
            ),
        )


if __name__ == '__main__':
    app.run(main)
