"""Each method of Hugging Face's peft as one of ours.

A reader takes from `found.tensors` what it understands; what is left is an error of the caller.
"""

from collections.abc import Callable

from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.activation import read_activated
from peftjax.interop.peft.adalora import read_adalora
from peftjax.interop.peft.adaption import read_adaption
from peftjax.interop.peft.by_format import read_format
from peftjax.interop.peft.formats import FORMATS
from peftjax.interop.peft.found import Found, Part, check_shapes
from peftjax.interop.peft.ia3 import read_ia3
from peftjax.interop.peft.lora import read_lora
from peftjax.interop.peft.prompts import (
    read_cartridge,
    read_cpt,
    read_multitask,
    read_prefix,
    read_prompt,
)
from peftjax.interop.peft.randlora import read_randlora
from peftjax.interop.peft.tokens import read_tokens
from peftjax.interop.peft.vblora import read_vblora
from peftjax.interop.peft.whole import read_norms, read_whole


def read(found: Found) -> list[Part]:
    """The parts of a chain that the file holds, in its order.

    Raises:
        CheckpointError: a method that is not built here, or what its reader raises.
    """
    kind = str(found.config['peft_type'])
    readers: dict[str, Callable[[Found], Part]] = {
        **{
            name: lambda found, each=form: read_format(found, each)
            for name, form in FORMATS.items()
        },
        'LORA': read_lora,
        'ADALORA': read_adalora,
        'IA3': read_ia3,
        'VBLORA': read_vblora,
        'RANDLORA': read_randlora,
        'LN_TUNING': read_norms,
        'PROMPT_TUNING': read_prompt,
        'P_TUNING': read_prompt,
        'PREFIX_TUNING': read_prefix,
        'CPT': read_cpt,
        'MULTITASK_PROMPT_TUNING': read_multitask,
        'CARTRIDGE': read_cartridge,
        'ADAPTION_PROMPT': read_adaption,
    }
    if kind == 'PSOFT':
        raise CheckpointError(
            f'{found.config.where}: a PSOFT adapter depends on the signs of singular vectors, '
            'which are not in the file and differ between machines; see peftjax.principal_subspaces'
        )
    if kind not in readers and kind != 'TRAINABLE_TOKENS':
        raise CheckpointError(
            f'{found.config.where}: peft_type {kind!r} is not built here; there are '
            f'{", ".join(sorted((*readers, "TRAINABLE_TOKENS")))}'
        )
    try:
        rows = kind == 'TRAINABLE_TOKENS' or found.config.get('trainable_token_indices')
        parts = read_tokens(found) if rows else []
        if kind != 'TRAINABLE_TOKENS':
            parts.append(readers[kind](found))
        # Of a LORA; any other type with this field is refused, as nobody has read it.
        if kind == 'LORA' and found.config.get('alora_invocation_tokens') is not None:
            parts[-1] = read_activated(found, parts[-1])
        copies = read_whole(found)
        for part in parts:
            check_shapes(found.model, found.where, part)
    except (TypeError, ValueError, OverflowError, LookupError) as error:
        if isinstance(error, CheckpointError):
            raise error.at(found.config.where) from error
        raise CheckpointError(f'{found.config.where} does not fit a {kind}: {error}') from error
    return [*copies, *parts]
