"""`peftjax convert`: an adapter in the format of another library."""

import argparse

import peftjax
from peftjax.cli.parser import Parser
from peftjax.cli.source import (
    ADAPTER,
    BASE,
    RUN,
    add_force,
    add_non_finite,
    add_reading,
    add_which,
    check_target,
    open_source,
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument('base', help=f'{BASE}; or {RUN}')
    parser.add_argument('adapter', nargs='?', help=f'{ADAPTER}; omit it for a run')
    parser.add_argument('out', help='the folder to write')
    parser.add_argument('--to', required=True, choices=('peft', 'adapterhub'))
    parser.add_argument(
        '--name', default='default', help='the name of the adapter in files of AdapterHub'
    )
    add_force(parser)
    add_which(parser)
    add_non_finite(parser)
    add_reading(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes the adapter and prints its folder."""
    check_target(arguments.out, arguments.force)
    source = open_source(arguments, scan=False)
    peftjax.save_adapter(
        arguments.out,
        source.model,
        source.transform,
        source.adapter,
        base_model=source.base,
        form=arguments.to,
        name=arguments.name,
    )
    print(arguments.out)
