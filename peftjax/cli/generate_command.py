"""`peftjax generate`: a decoder answers a question, or continues a text."""

import argparse
import importlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

import peftjax
from peftjax.cli.parser import Parser, number, whole
from peftjax.cli.plan_command import add_quantize
from peftjax.cli.source import (
    ADAPTER,
    BASE,
    RUN,
    Source,
    add_non_finite,
    add_which,
    is_run,
    open_run,
)
from peftjax.evaluation.scorer import until_end
from peftjax.train.optional import library


def add_arguments(parser: Parser) -> None:
    parser.add_argument('base', help=f'{BASE}; or {RUN}')
    parser.add_argument('--prompt', required=True, action='append', help='may be given again')
    parser.add_argument('--adapter', help=ADAPTER)
    add_which(parser)
    add_non_finite(parser)
    parser.add_argument(
        '--raw', action='store_true', help='continue the text, without the chat template'
    )
    parser.add_argument('--system', metavar='TEXT', help='a message in front of the conversation')
    parser.add_argument('--max-new-tokens', type=whole(1, 10**6), default=256, metavar='N')
    parser.add_argument('--temperature', type=number(0), default=0.0, help='0 takes the best token')
    parser.add_argument('--top-k', type=whole(1), metavar='K')
    parser.add_argument('--top-p', type=number(0), default=1.0, metavar='P')
    parser.add_argument('--seed', type=whole(0), default=0)
    add_quantize(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints an answer to each prompt; with --raw, or of a model without a chat template, each
    prompt with its continuation.

    Raises:
        ValueError: a model without a tokenizer; --system without a chat template.
    """
    source = _source(arguments)
    tokenizer = source.model.tokenizer
    if tokenizer is None:
        raise ValueError(f'{source.base} has no tokenizer.json to read the prompt with')
    chat = tokenizer.chat_template is not None and not arguments.raw
    if arguments.system is not None and not chat:
        raise ValueError('--system is for conversations, and no chat template is used')
    if chat:
        texts, ends = conversations(tokenizer, arguments.prompt, arguments.system)
        prompts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    else:
        prompts, ends = [tokenizer.encode(text) for text in arguments.prompt], tokenizer.ends
    rows = _write(source, prompts, ends, arguments)
    encoder = source.model.roles is not None and source.model.roles.decoder_ids
    for prompt, row in zip(arguments.prompt, rows, strict=True):
        text = tokenizer.decode(row)
        print(text.strip() if chat else text if encoder else prompt + text)


def conversations(
    tokenizer: peftjax.Tokenizer, questions: Sequence[str], system: str | None = None
) -> tuple[list[str], tuple[int, ...]]:
    """Questions as the chat template writes them, and the tokens that end an answer.

    The token behind an answer is read from the template: it is the first special token that the
    template writes behind one.

    Raises:
        ValueError: jinja2 is not installed; what a template that does not work raises.
    """
    library('jinja2', 'train', 'a chat template (--raw does without one)')
    module = importlib.import_module('peftjax.train.data.chat_template')
    first = [] if system is None else [{'role': 'system', 'content': system}]
    talks = [
        [*first, {'role': 'user', 'content': each}, {'role': 'assistant', 'content': 'Yes'}]
        for each in questions
    ]
    written = module.write_conversations(tokenizer.chat_template, talks, tokenizer.special)
    ends = list(tokenizer.ends)
    prompt, whole = written[0]
    if whole.startswith(prompt):
        special = {
            number
            for number, token in tokenizer.backend.get_added_tokens_decoder().items()
            if token.special
        }
        behind = tokenizer.encode(whole[len(prompt) :], add_special_tokens=False)
        ends += [number for number in behind if number in special][:1]
    return [prompt for prompt, _ in written], tuple(dict.fromkeys(ends))


def _source(arguments: argparse.Namespace) -> Source:
    if arguments.adapter is None and is_run(arguments.base):
        return open_run(arguments.base, arguments.which, arguments.allow_non_finite)
    finite = {'allow_non_finite': arguments.allow_non_finite}
    model = peftjax.load(
        arguments.base, scan=arguments.adapter is None, quantize=arguments.quantize, **finite
    )
    if arguments.adapter is None:
        method = peftjax.chain()
        return Source(model, method, (), method.freeze(model, ()), arguments.base)
    loaded = peftjax.load_adapter(arguments.adapter, model, **finite)
    return Source(model, loaded.transform, loaded.adapter, loaded.frozen, arguments.base)


def _write(
    source: Source,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    arguments: argparse.Namespace,
) -> list[list[int]]:
    """The tokens behind each prompt, up to the first that ends a text."""
    tokenizer = source.model.tokenizer
    pad = 0 if tokenizer is None or not tokenizer.ends else tokenizer.ends[0]
    ids, mask = peftjax.pad_left(prompts, pad)
    written = peftjax.generator(source.model, source.transform)(
        source.adapter,
        source.frozen,
        jnp.asarray(ids),
        mask,
        max_new_tokens=arguments.max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        sampling=peftjax.Sampling(arguments.temperature, arguments.top_k, arguments.top_p),
        key=jax.random.key(arguments.seed),
    )
    return [until_end(row, ends) for row in written.tolist()]
