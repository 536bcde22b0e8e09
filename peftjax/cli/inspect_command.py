"""`peftjax inspect`: what methods can target in a checkpoint, or what an adapter trains."""

import argparse

import jax

import peftjax
from peftjax.cli.parser import Parser
from peftjax.cli.source import (
    ADAPTER,
    BASE,
    RUN,
    add_non_finite,
    add_reading,
    add_which,
    is_run,
    load_base,
    open_source,
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument('base', help=f'{BASE}; or {RUN}')
    parser.add_argument('--adapter', help=ADAPTER)
    add_which(parser)
    add_non_finite(parser)
    add_reading(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints the sites of a model; or a method, what it trains, and the scores of its run."""
    whole = arguments.adapter is None and is_run(arguments.base)
    if arguments.adapter is None and not whole:
        model = load_base(arguments, abstract=True)
        print(model.sites)
        print(f'\n{sum(leaf.size for leaf in jax.tree.leaves(model.params)):,} parameters')
        return
    source = open_source(arguments, scan=False)
    print(repr(source.transform))
    print(peftjax.summary(source.transform, source.model))
    if whole:
        _print_run(peftjax.train.RunFolder(arguments.base))


def _print_run(folder: 'peftjax.train.RunFolder') -> None:
    settings = folder.settings
    print(f'\nbase   {settings.model.source}')
    print(f'task   {settings.task}, data {settings.data.source}')
    print(f'run    {settings.duration}, lr {settings.lr:g}, seed {settings.seed}')
    for name, value in folder.result.items():
        print(f'{name:28} {value:.6g}' if isinstance(value, float) else f'{name:28} {value}')
