"""Many prompts on one base, each with its adapter, by continuous batching."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

import peftjax
from peftjax.cli.prompts_file import Prompt
from peftjax.cli.source import is_run, is_saved, open_adapter, vocabulary_of


class Served(NamedTuple):
    """A base with a bank of its adapters.

    Attributes:
        model: the base.
        bank, frozen: of `peftjax.serving.bank`; the adapters have the slots 1, 2, ... in order.
    """

    model: peftjax.Model
    bank: peftjax.serving.Bank
    frozen: peftjax.Frozen


def open_bank(folders: Mapping[str, str], arguments: argparse.Namespace) -> Served:
    """Reads the base and its adapters.

    Args:
        folders: of adapters, by name.
        arguments: with base, quantize, which and allow_non_finite.

    Raises:
        ValueError: the base is a run; files are missing or do not fit; one bank cannot hold all
            the adapters.
    """
    if is_run(arguments.base):
        raise ValueError(
            f'{arguments.base} is the work folder of a run; with --prompts give the base model, '
            'and the run in --adapters'
        )
    try:
        return _bank(folders, arguments, stacked=True)
    except peftjax.CheckpointError:
        if not folders or any(is_run(path) or is_saved(path) for path in folders.values()):
            raise
    # An adapter on only some layers needs them unstacked.
    return _bank(folders, arguments, stacked=False)


def _bank(folders: Mapping[str, str], arguments: argparse.Namespace, *, stacked: bool) -> Served:
    finite = arguments.allow_non_finite
    model = peftjax.load(
        arguments.base,
        scan=stacked,
        quantize=arguments.quantize,
        allow_non_finite=finite,
        **vocabulary_of(arguments),
    )
    members = [open_adapter(path, model, arguments.which, finite) for path in folders.values()]
    if not members:
        return Served(model, *peftjax.serving.bank(model, transform=peftjax.chain()))
    try:
        return Served(model, *peftjax.serving.bank(model, members))
    except ValueError as error:
        raise ValueError(f'--adapters {", ".join(folders)}: {error}') from None


def answers(
    served: Served,
    prompts: Sequence[Prompt],
    tokens: Sequence[Sequence[int]],
    ends: Sequence[int],
    arguments: argparse.Namespace,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number of a prompt and the tokens of its answer, whenever one is finished.

    Args:
        prompts: the lines of the file.
        tokens: of each prompt.
        ends: tokens that end an answer.
        arguments: with rows, temperature, top_k, top_p and seed.

    Raises:
        ValueError: a prompt has no tokens, or the model reads no text or writes none.
    """
    for prompt, ids in zip(prompts, tokens, strict=True):
        if not ids:
            raise ValueError(f'{prompt.where}: the prompt has no tokens; write at least one word')
    requests = [
        peftjax.serving.Request(ids, prompt.slot, prompt.max_new_tokens)
        for prompt, ids in zip(prompts, tokens, strict=True)
    ]
    virtual = int(served.bank.lengths.max())
    roles = served.model.roles or peftjax.Roles()
    if roles.features:
        raise ValueError(
            f'this model reads {roles.features} and no text; write '
            'peftjax.serving.server(model, ...) in Python'
        )
    if roles.decoder_ids:
        # The prompt is the encoder's; the decoder starts with one token.
        places = 1 + max(request.max_new_tokens for request in requests)
        longest = max(len(ids) for ids in tokens)
    else:
        places, longest = max(request.places for request in requests), None
    serve = peftjax.serving.server(
        served.model,
        rows=min(arguments.rows, len(requests)),
        max_length=places + virtual,
        max_prompt=longest,
        eos_token_id=list(ends) or None,
        sampling=peftjax.Sampling(arguments.temperature, arguments.top_k, arguments.top_p),
    )
    key = jax.random.key(arguments.seed)
    for answer in serve(served.bank, served.frozen, requests, key):
        if answer.refused:
            raise ValueError(f'{prompts[answer.number].where}: {answer.refused}')
        yield answer.number, answer.tokens
