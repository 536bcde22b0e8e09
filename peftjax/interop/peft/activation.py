"""LoRA that is active from an invocation on (aLoRA), in files of Hugging Face's peft."""

from typing import Any

from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, Part
from peftjax.interop.peft.lora import read_lora, write_lora
from peftjax.interop.peft.names import Names
from peftjax.interop.peft.written import Written
from peftjax.methods.low_rank.activated import activated


def read_lora_or_activated(found: Found) -> Part:
    """A LoRA, which the config may activate by tokens."""
    part = read_lora(found)
    activates = found.config.get('alora_invocation_tokens') is not None
    return _activated(found, part) if activates else part


def _activated(found: Found, part: Part) -> Part:
    """A LoRA that the config activates by tokens.

    Raises:
        CheckpointError: for a task where the library never activates it; with another variant.
    """
    config, (transform, entries) = found.config, part
    invocation = config['alora_invocation_tokens']
    config.must_be('use_dora', False)
    if config.get('task_type') != 'CAUSAL_LM':
        raise CheckpointError(
            f'{config.where}: alora_invocation_tokens with task_type {config.get("task_type")!r}, '
            "for which the library never activates a LoRA; it is trained as 'CAUSAL_LM'"
        )
    if not isinstance(invocation, list) or not all(type(each) is int for each in invocation):
        raise CheckpointError(
            f'{config.where}: alora_invocation_tokens is {str(invocation)[:60]}, no list of ids'
        )
    if tables := [path for path, entry in entries.items() if entry.layout.lookup]:
        raise CheckpointError(
            f'{found.where} activates a LoRA on {tables[0]!r}, which is looked up; the library has '
            'it on linear layers alone'
        )
    return activated(transform, invocation=tuple(invocation)), {'activated': entries}


def write_activated(model: Any, names: Names, arguments: Any, entries: Any, part: Any) -> Written:
    """The LoRA inside, and its invocation."""
    inner, entries = arguments['transform'], entries['activated']
    if inner.about is None or inner.about.name != 'lora':
        named = 'a method of your own' if inner.about is None else inner.about.name
        raise ValueError(f'peft activates LoRA alone, and this is {named}')
    if inner.about.arguments['bias']:
        raise ValueError('peft activates LoRA without a bias of its own; leave bias out')
    if tables := [path for path, entry in entries.items() if entry.layout.lookup]:
        raise ValueError(f'peft activates LoRA on linear layers alone; leave {tables} out')
    if names.task != 'CAUSAL_LM':
        raise ValueError(f'peft activates LoRA of decoders alone, and this model is a {names.task}')
    del part
    tensors, fields = write_lora(model, names, inner.about.arguments, entries, inner)
    return tensors, {**fields, 'alora_invocation_tokens': list(arguments['invocation'])}
