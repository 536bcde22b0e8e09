"""Reads each method of Hugging Face's peft as one of ours.

A reader takes the tensors that it understands from `found.tensors`; the caller raises for the rest.
"""

from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, Part, check_shapes
from peftjax.interop.peft.kinds import KINDS, UNREADABLE
from peftjax.interop.peft.tokens import read_tokens
from peftjax.interop.peft.whole import read_whole


def read(found: Found) -> list[Part]:
    """The parts of a chain that the file holds, in its order.

    Raises:
        CheckpointError: a method that is not built here, or a file that does not fit its method.
    """
    name = str(found.config['peft_type'])
    if name not in KINDS:
        because = UNREADABLE.get(
            name, f'peft_type {name!r} is not built here; there are {", ".join(sorted(KINDS))}'
        )
        raise CheckpointError(f'{found.config.where}: {because}')
    kind = KINDS[name]
    try:
        tokens = kind.read is None or found.config.get('trainable_token_indices')
        parts = read_tokens(found) if tokens else []
        if kind.read is not None:
            parts.append(kind.read(found))
        copies = read_whole(found)
        for part in parts:
            check_shapes(found.model, found.where, part)
    except (TypeError, ValueError, OverflowError, LookupError) as error:
        if isinstance(error, CheckpointError):
            raise error.at(found.config.where) from error
        raise CheckpointError(f'{found.config.where} does not fit a {name}: {error}') from error
    return [*copies, *parts]
