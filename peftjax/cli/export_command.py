"""`peftjax export`: a LoRA as a GGUF adapter, for llama.cpp."""

import argparse

import peftjax
from peftjax.cli.parser import Parser
from peftjax.cli.source import (
    ADAPTER,
    BASE,
    RUN,
    add_force,
    add_non_finite,
    add_which,
    check_target,
    open_source,
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument('base', help=f'{BASE}; or {RUN}')
    parser.add_argument('adapter', nargs='?', help=f'{ADAPTER}; omit it for a run')
    parser.add_argument('out', help='the .gguf file to write; llama-cli takes it as --lora')
    parser.add_argument('--name', default='', help='the name of the adapter in the file')
    add_force(parser)
    add_which(parser)
    add_non_finite(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes the file and prints its name."""
    check_target(arguments.out, arguments.force)
    source = open_source(arguments, scan=False)
    peftjax.export_gguf(
        arguments.out, source.model, source.transform, source.adapter, name=arguments.name
    )
    print(arguments.out)
