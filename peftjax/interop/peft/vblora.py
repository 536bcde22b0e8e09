"""VB-LoRA, in and out."""

from typing import Any

import numpy as np

from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, Part, literal
from peftjax.interop.peft.names import ROOT, Names
from peftjax.interop.peft.written import Written, common, conv1d, linear_alone, modules_of
from peftjax.methods.low_rank.vblora import vblora


def read_vblora(found: Found) -> Part:
    config = found.config
    config.must_be('bias', 'none')
    config.must_be('save_only_topk_weights', False)
    modules = found.take({'logits_a': '.vblora_logits_A', 'logits_b': '.vblora_logits_B'})
    found.linear_alone(modules)
    found.check_targets(modules)
    bank = found.tensors.pop('base_model.vblora_vector_bank', None)
    if bank is None:
        raise CheckpointError(f'{found.where} lacks base_model.vblora_vector_bank')
    entries = found.entries(
        'vblora',
        {
            module: {'logits_a': a['logits_a'], 'logits_b': a['logits_b'].swapaxes(0, 1)}
            for module, a in modules.items()
        },
    )
    transform = vblora(
        rank=config.whole('r'),
        num_vectors=config.whole('num_vectors'),
        vector_length=config.whole('vector_length'),
        topk=config.whole('topk'),
        dropout=config.number('vblora_dropout', 0.0),
        targets=literal(entries),
    )
    return transform, {'bank': bank, 'sites': entries}


def write_vblora(model: Any, names: Names, arguments: Any, adapter: Any, part: Any) -> Written:
    del model, part
    linear_alone(names, adapter['sites'])
    tensors = {'base_model.vblora_vector_bank': np.asarray(adapter['bank'])}
    modules = modules_of(names, adapter['sites'])
    for module, arrays in modules.items():
        tensors[f'{ROOT}{module}.vblora_logits_A'] = arrays['logits_a']
        tensors[f'{ROOT}{module}.vblora_logits_B'] = arrays['logits_b'].swapaxes(0, 1)
    return tensors, {
        **common(names, 'VBLORA', modules),
        'r': arguments['rank'],
        'num_vectors': arguments['num_vectors'],
        'vector_length': arguments['vector_length'],
        'topk': arguments['topk'],
        'vblora_dropout': arguments['dropout'],
        'fan_in_fan_out': conv1d(names, adapter['sites']),
    }
