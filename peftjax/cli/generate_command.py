"""`peftjax generate`: a decoder answers a question, or continues a text."""

import argparse
import importlib
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp

import peftjax
from peftjax.cli import many_adapters, prompts_file
from peftjax.cli.parser import Parser, UsageError, number, whole
from peftjax.cli.plan_command import add_quantize
from peftjax.cli.source import (
    ADAPTER,
    BASE,
    RUN,
    Source,
    add_non_finite,
    add_vocabulary,
    add_which,
    is_run,
    is_saved,
    open_adapter,
    open_run,
    vocabulary_of,
)
from peftjax.evaluation.scorer import until_end
from peftjax.train.optional import library


def add_arguments(parser: Parser) -> None:
    parser.add_argument('base', help=f'{BASE}; or {RUN}')
    parser.add_argument('--prompt', action='append', help='may be given again')
    parser.add_argument('--adapter', help=ADAPTER)
    many = parser.add_argument_group('many prompts and adapters', 'see docs/serving.md')
    many.add_argument(
        '--prompts',
        metavar='FILE',
        help='one JSON object a line: {"prompt": "...", "adapter": "a", "max_new_tokens": 64}; '
        'without an adapter, the base answers',
    )
    many.add_argument(
        '--adapters',
        metavar='A,B',
        help='folders as for --adapter, or work folders of runs; an adapter is named by the last '
        'part of its folder, or as in name=folder',
    )
    many.add_argument(
        '--rows', type=whole(1, 4096), default=8, help='prompts answered at the same time (8)'
    )
    add_which(parser)
    add_non_finite(parser)
    add_vocabulary(parser)
    parser.add_argument(
        '--raw', action='store_true', help='continue the text, without the chat template'
    )
    parser.add_argument('--system', metavar='TEXT', help='the system message of the conversation')
    parser.add_argument(
        '--max-new-tokens', type=whole(1, prompts_file.MOST_NEW_TOKENS), default=256, metavar='N'
    )
    parser.add_argument('--temperature', type=number(0), default=0.0, help='0 takes the best token')
    parser.add_argument('--top-k', type=whole(1), metavar='K')
    parser.add_argument('--top-p', type=number(0), default=1.0, metavar='P')
    parser.add_argument('--seed', type=whole(0), default=0)
    add_quantize(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints an answer to each prompt.

    With --raw, or if the model has no chat template, prints each prompt with its continuation.
    With --prompts, prints one JSON line for each line of the file, in the order of the file: a
    line is printed once it and all earlier lines are answered.

    Raises:
        ValueError: the model has no tokenizer; --system without a chat template; flags exclude
            each other; a line of the file is wrong.
    """
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise UsageError('give --prompt TEXT, or --prompts FILE')
    if arguments.prompts is None:
        if arguments.adapters is not None:
            raise UsageError('--adapters needs --prompts FILE; with --prompt write --adapter')
        _answer_texts(arguments)
        return
    if arguments.adapter is not None:
        raise UsageError(
            f'--adapter needs --prompt; with --prompts write --adapters {arguments.adapter}'
        )
    _answer_file(arguments)


def _answer_texts(arguments: argparse.Namespace) -> None:
    source = _source(arguments)
    read = _Read(source.model, source.base, arguments.prompt, arguments)
    rows = _write(source, read.tokens, read.ends, arguments)
    encoder = source.model.roles is not None and source.model.roles.decoder_ids
    for prompt, row in zip(arguments.prompt, rows, strict=True):
        text = read.text(row)
        print(text if read.chat or encoder else prompt + text)


def _answer_file(arguments: argparse.Namespace) -> None:
    folders = {} if arguments.adapters is None else prompts_file.named(arguments.adapters)
    prompts = prompts_file.read(arguments.prompts, list(folders), arguments.max_new_tokens)
    served = many_adapters.open_bank(folders, arguments)
    read = _Read(served.model, arguments.base, [each.text for each in prompts], arguments)
    waiting: dict[int, str] = {}
    first = 0
    for done, row in many_adapters.answers(served, prompts, read.tokens, read.ends, arguments):
        waiting[done] = read.text(until_end(row.tolist(), read.ends))
        while first in waiting:
            one = prompts[first]
            line = {'prompt': one.text, 'adapter': one.adapter, 'answer': waiting.pop(first)}
            print(json.dumps(line, ensure_ascii=False), flush=True)
            first += 1


class _Read:
    """Prompts as tokens.

    Attributes:
        chat: whether they went through the chat template.
        tokens: of each prompt.
        ends: tokens that end an answer.
    """

    def __init__(
        self,
        model: peftjax.Model,
        base: str,
        prompts: Sequence[str],
        arguments: argparse.Namespace,
    ):
        if model.tokenizer is None:
            raise ValueError(f'{base} has no tokenizer.json to read the prompt with')
        self._tokenizer = model.tokenizer
        self.chat = self._tokenizer.chat_template is not None and not arguments.raw
        if arguments.system is not None and not self.chat:
            raise ValueError('--system needs a chat template, and none is used; leave it out')
        texts, self.ends = prompts, self._tokenizer.ends
        if self.chat:
            texts, self.ends = conversations(self._tokenizer, prompts, arguments.system)
        self.tokens = [
            self._tokenizer.encode(text, add_special_tokens=not self.chat) for text in texts
        ]

    def text(self, row: Sequence[int]) -> str:
        """An answer as text."""
        text = self._tokenizer.decode(row)
        return text.strip() if self.chat else text


def conversations(
    tokenizer: peftjax.Tokenizer, questions: Sequence[str], system: str | None = None
) -> tuple[list[str], tuple[int, ...]]:
    """Questions as the chat template writes them, and the tokens that end an answer.

    An answer ends with the tokenizer's end tokens, or with the first special token that the
    template writes after an answer.

    Raises:
        ValueError: jinja2 is not installed, or the template fails.
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
    # Adapters of `peftjax.save` have the paths of a model with stacked layers; an adapter on only
    # some layers needs them unstacked.
    stacked = arguments.adapter is None or is_run(arguments.adapter) or is_saved(arguments.adapter)
    model = peftjax.load(
        arguments.base,
        scan=stacked,
        quantize=arguments.quantize,
        allow_non_finite=arguments.allow_non_finite,
        **vocabulary_of(arguments),
    )
    if arguments.adapter is None:
        method = peftjax.chain()
        return Source(model, method, (), method.freeze(model, ()), arguments.base)
    transform, adapter, frozen = open_adapter(
        arguments.adapter, model, arguments.which, arguments.allow_non_finite
    )
    return Source(model, transform, adapter, frozen, arguments.base)


def _write(
    source: Source,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    arguments: argparse.Namespace,
) -> list[list[int]]:
    """The tokens that continue each prompt, up to the first end token."""
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
