"""The methods of Hugging Face's peft, each by its `peft_type`: how a file is read and written."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from peftjax.core.model import Model
from peftjax.interop.peft.activation import read_lora_or_activated, write_activated
from peftjax.interop.peft.adalora import read_adalora, write_adalora
from peftjax.interop.peft.adaption import read_adaption, write_adaption
from peftjax.interop.peft.by_format import read_format, write_format
from peftjax.interop.peft.formats import FORMATS
from peftjax.interop.peft.found import Found, Part
from peftjax.interop.peft.ia3 import read_ia3, write_ia3
from peftjax.interop.peft.lora import write_lora
from peftjax.interop.peft.names import Names
from peftjax.interop.peft.prompts import (
    read_cartridge,
    read_cpt,
    read_multitask,
    read_prefix,
    read_prompt,
    write_p_tuning,
    write_prefix,
    write_prompt,
)
from peftjax.interop.peft.randlora import read_randlora
from peftjax.interop.peft.vblora import read_vblora, write_vblora
from peftjax.interop.peft.whole import read_norms
from peftjax.interop.peft.written import Written

Reader = Callable[[Found], Part]
Writer = Callable[[Model, Names, Any, Any, Any], Written]


class Kind(NamedTuple):
    """A method of the library.

    Attributes:
        read: reads it as a method of ours; None if only tokens are read, as beside any method.
        write: by the name of our method, the function that writes it as this one.
    """

    read: Reader | None
    write: Mapping[str, Writer] = {}


KINDS: dict[str, Kind] = {
    'LORA': Kind(
        read_lora_or_activated,
        {
            'lora': write_lora,
            'dora': write_lora,
            'lora_fa': write_lora,
            'kasa': write_lora,
            'activated': write_activated,
        },
    ),
    'ADALORA': Kind(read_adalora, {'adalora': write_adalora}),
    'IA3': Kind(read_ia3, {'ia3': write_ia3}),
    'VBLORA': Kind(read_vblora, {'vblora': write_vblora}),
    'RANDLORA': Kind(read_randlora),
    'PROMPT_TUNING': Kind(read_prompt, {'prompt_tuning': write_prompt}),
    'P_TUNING': Kind(read_prompt, {'p_tuning': write_p_tuning}),
    'PREFIX_TUNING': Kind(read_prefix, {'prefix_tuning': write_prefix}),
    'CPT': Kind(read_cpt),
    'MULTITASK_PROMPT_TUNING': Kind(read_multitask),
    'CARTRIDGE': Kind(read_cartridge),
    'ADAPTION_PROMPT': Kind(read_adaption, {'adaption_prompt': write_adaption}),
    'LN_TUNING': Kind(read_norms),
    'TRAINABLE_TOKENS': Kind(None),
    **{
        name: Kind(
            functools.partial(read_format, form=form),
            {form.method: functools.partial(write_format, kind=name)},
        )
        for name, form in FORMATS.items()
    },
}

WRITERS = {method: write for kind in KINDS.values() for method, write in kind.write.items()}

UNREADABLE = {
    'PSOFT': (
        'a PSOFT adapter depends on the signs of singular vectors, which are not in the file and '
        'differ between machines; see peftjax.principal_subspaces'
    ),
    'XLORA': (
        'an X-LoRA takes its shares from the last hidden states of a first pass of the model, '
        'which the models here do not return; load its LoRAs, each a folder of its own, and train '
        'gates over them with peftjax.merging.x_lora'
    ),
}
UNWRITABLE = {
    'randlora': (
        'a file of peft holds one pair of projections for all matrices, in an order of its own '
        'that randlora does not keep; merge it'
    )
}
