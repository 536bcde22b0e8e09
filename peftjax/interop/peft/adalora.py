"""AdaLoRA, in and out."""

from typing import Any

from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, Part, literal
from peftjax.interop.peft.names import ROOT, Names
from peftjax.interop.peft.written import Written, common, conv1d, linear_alone, modules_of
from peftjax.methods.low_rank.adalora import adalora


def read_adalora(found: Found) -> Part:
    config = found.config
    modules = found.take({'p': '.lora_A', 'q': '.lora_B', 'lambda': '.lora_E'})
    config.must_be('bias', 'none')
    config.must_be('use_dora', False)
    config.must_be('use_rslora', False)
    if config.get('rank_pattern'):
        raise CheckpointError(
            f'{config.where}: rank_pattern holds ranks that training has cut; only adapters of one '
            'rank are built here'
        )
    config.get('r')
    entries = found.entries(
        'adalora',
        {
            module: {'p': a['p'].T, 'q': a['q'].T, 'lambda': a['lambda'][:, 0]}
            for module, a in modules.items()
        },
    )
    found.linear_alone(modules)
    found.check_targets(modules)
    transform = adalora(
        init_rank=config.whole('init_r'),
        alpha=config.number('lora_alpha'),
        dropout=config.number('lora_dropout', 0.0),
        targets=literal(entries),
    )
    return transform, entries


def write_adalora(model: Any, names: Names, arguments: Any, entries: Any, part: Any) -> Written:
    del model, part
    linear_alone(names, entries)
    tensors = {}
    for module, arrays in modules_of(names, entries).items():
        tensors[f'{ROOT}{module}.lora_A'] = arrays['p'].T
        tensors[f'{ROOT}{module}.lora_B'] = arrays['q'].T
        tensors[f'{ROOT}{module}.lora_E'] = arrays['lambda'][:, None]
    rank, alpha = arguments['init_rank'], arguments['alpha']
    return tensors, {
        **common(names, 'ADALORA', modules_of(names, entries)),
        'init_r': rank,
        'target_r': rank,
        'lora_alpha': rank if alpha is None else alpha,
        'lora_dropout': arguments['dropout'],
        'total_step': 1,
        'fan_in_fan_out': conv1d(names, entries),
    }
