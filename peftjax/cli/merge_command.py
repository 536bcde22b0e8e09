"""`peftjax merge`: a checkpoint that computes what base and adapter do together."""

import argparse

import jax

import peftjax
from peftjax.cli.parser import Parser
from peftjax.cli.source import ADAPTER, BASE, RUN, add_labels, add_which, open_source


def add_arguments(parser: Parser) -> None:
    parser.add_argument('base', help=f'{BASE}, but no .gguf file; or {RUN}')
    parser.add_argument('adapter', nargs='?', help=f'{ADAPTER}; left out for a run')
    parser.add_argument('out', help='the folder to write; transformers and peftjax.load read it')
    parser.add_argument(
        '--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'), help='of the file'
    )
    add_which(parser)
    add_labels(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes the checkpoint and prints its folder."""
    source = open_source(arguments, scan=False)
    merged = peftjax.dequantize(source.transform.merge(source.adapter, source.frozen))
    merged = jax.tree.map(lambda leaf: leaf.astype(arguments.dtype), merged)
    peftjax.save_checkpoint(arguments.out, source.model, merged, source.base)
    print(arguments.out)
    if source.model.only_here:
        print(f'read it with peftjax alone: {source.model.only_here}')
