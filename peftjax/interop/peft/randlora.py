"""RandLoRA, which is only read: a file has its projections in an order that ours does not keep."""

import numpy as np

from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, Part, literal
from peftjax.methods.low_rank.randlora import randlora


def read_randlora(found: Found) -> Part:
    config = found.config
    config.must_be('bias', 'none')
    if not config.get('save_projection', True):
        raise CheckpointError(
            f'{config.where}: save_projection is false, but its projections cannot be drawn again'
        )
    for name in ('sparse', 'very_sparse'):
        config.get(name)
    rank = config.whole('r')
    endings = {'l': '.randlora_lambda', 'g': '.randlora_gamma'}
    drawn = {'big_a': '.randlora_A', 'big_b': '.randlora_B'}
    for name in drawn.values():  # A second copy of the arrays at each module.
        found.tensors.pop(f'base_model{name}', None)
    modules = found.take({**endings, **drawn})
    found.linear_alone(modules)
    found.check_targets(modules)
    turned = {module: {'l': a['l'].T, 'g': a['g']} for module, a in modules.items()}
    entries = found.entries('randlora', turned)
    bases = {}
    for module, arrays in modules.items():
        path = found.place(module).slot.path
        layout = found.layout(path)
        short, long = sorted((layout.inputs, layout.outputs))
        count = -(-short // rank)
        # Its columns are numbered base by base, the rows of A that they meet rank by rank.
        b = arrays['big_b'][:long, :count].reshape(long, rank, count).transpose(2, 0, 1)
        mine = arrays['big_a'][:, 0, :short], b
        if any(
            map(np.any, (a != b for a, b in zip(bases.setdefault(path, mine), mine, strict=True)))
        ):
            raise CheckpointError(f'{found.where}: layers of {path!r} have different projections')
    transform = randlora(
        rank=rank,
        alpha=config.number('randlora_alpha'),
        dropout=config.number('randlora_dropout', 0.0),
        bases=bases,
        targets=literal(entries),
    )
    return transform, entries
