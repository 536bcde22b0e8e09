"""What `peftjax` takes on its command line."""

import argparse
import platform
from importlib import metadata
from typing import Any

import peftjax
from peftjax.cli import commands

_SOURCE = (
    "a folder in Hugging Face layout, 'org/name' on the hub, a .gguf file, or "
    "'package:name/sub/folder'"
)
_ADAPTER = "a folder with adapter_config.json and adapter_model.safetensors, or 'org/name'"


def parser() -> argparse.ArgumentParser:
    """Of the command line, with a function for each command under `run`."""
    whole = argparse.ArgumentParser(
        prog='peftjax',
        description='Adapters and checkpoints, from the command line.',
        epilog='peftjax COMMAND --help says what a command takes, with an example.',
    )
    whole.add_argument('--version', action='version', version=_versions())
    into = whole.add_subparsers(dest='command', required=True, metavar='COMMAND')
    _add_inspect(into)
    _add_merge(into)
    _add_convert(into)
    _add_export(into)
    _add_generate(into)
    _add_plan(into)
    return whole


def _add_inspect(into: Any) -> None:
    parser = _command(
        into,
        'inspect',
        commands.inspect,
        'what a checkpoint offers to methods, or what an adapter trains of it',
        'peftjax inspect HuggingFaceTB/SmolLM2-135M-Instruct --adapter my_adapter',
    )
    parser.add_argument('base', help=_SOURCE)
    parser.add_argument('--adapter', help=_ADAPTER)
    _add_labels(parser)


def _add_merge(into: Any) -> None:
    parser = _command(
        into,
        'merge',
        commands.merge,
        'write a checkpoint that computes what base and adapter do together',
        'peftjax merge HuggingFaceTB/SmolLM2-135M-Instruct my_adapter merged',
    )
    parser.add_argument('base', help=_SOURCE + '; not a .gguf file')
    parser.add_argument('adapter', help=_ADAPTER)
    parser.add_argument('out', help='the folder to write; transformers and peftjax.load read it')
    _add_labels(parser)
    parser.add_argument(
        '--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'), help='of the file'
    )


def _add_convert(into: Any) -> None:
    parser = _command(
        into,
        'convert',
        commands.convert,
        'write an adapter in the files of another library',
        'peftjax convert google-bert/bert-base-uncased my_adapter hub_adapter --to adapterhub',
    )
    parser.add_argument('base', help=_SOURCE)
    parser.add_argument('adapter', help=_ADAPTER + "; either library's")
    parser.add_argument('out', help='the folder to write')
    parser.add_argument('--to', required=True, choices=('peft', 'adapterhub'))
    parser.add_argument('--name', default='default', help="the adapter's, which adapterhub keeps")
    _add_labels(parser)


def _add_export(into: Any) -> None:
    parser = _command(
        into,
        'export',
        commands.export,
        'write a LoRA as a GGUF adapter, for llama.cpp',
        'peftjax export HuggingFaceTB/SmolLM2-135M-Instruct my_adapter my_adapter.gguf',
    )
    parser.add_argument('base', help=_SOURCE)
    parser.add_argument('adapter', help=_ADAPTER)
    parser.add_argument('out', help='the .gguf file to write; llama-cli takes it as --lora')
    parser.add_argument('--name', default='', help='what the file calls the adapter')


def _add_generate(into: Any) -> None:
    parser = _command(
        into,
        'generate',
        commands.generate,
        'let a decoder go on with a text',
        "peftjax generate HuggingFaceTB/SmolLM2-135M --prompt 'The sea is' --adapter my_adapter",
    )
    parser.add_argument('base', help=_SOURCE)
    parser.add_argument('--prompt', required=True, action='append', help='may be given again')
    parser.add_argument('--adapter', help=_ADAPTER)
    parser.add_argument('--max-new-tokens', type=int, default=64, metavar='N')
    parser.add_argument('--temperature', type=float, default=0.0, help='0 takes the best token')
    parser.add_argument('--top-k', type=int, metavar='K')
    parser.add_argument('--top-p', type=float, default=1.0, metavar='P')
    parser.add_argument('--seed', type=int, default=0)
    _add_quantize(parser)


def _add_plan(into: Any) -> None:
    parser = _command(
        into,
        'plan',
        commands.plan,
        'what a training step takes: memory, products, time, and whether it fits; weights are not '
        'needed',
        'peftjax plan huggyllama/llama-7b --method "lora(rank=8, targets=r\'.*/(q|v)_proj\')" '
        "--method 'full()' --dtype bfloat16 --remat full --batch 8 --length 2048 --fsdp 8 "
        '--machine v5e',
    )
    parser.add_argument(
        'base',
        help=f'{_SOURCE}, with config.json at least; or, unless a folder here has that name, a '
        "number of parameters, '7B': a Llama of that size, without --method the rule of thumb",
    )
    parser.add_argument(
        '--method',
        action='append',
        default=[],
        metavar='CALL',
        help='a method of peftjax with its arguments; may be given again, one row each',
    )
    parser.add_argument('--batch', type=int, metavar='N', help='examples in a step; 8')
    parser.add_argument('--length', type=int, metavar='N', help='tokens in an example; 512')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'))
    parser.add_argument('--remat', metavar='POLICY', help="'full', or a policy of jax by its name")
    _add_quantize(parser)
    for axis in ('data', 'fsdp', 'tensor'):
        parser.add_argument(f'--{axis}', type=int, default=1, metavar='N', help='axis of the mesh')
    parser.add_argument(
        '--machine',
        choices=tuple(peftjax.plan.MACHINES),
        help='each device; else that of --topology',
    )
    parser.add_argument(
        '--topology',
        metavar='H100:8',
        help='ask the compiler of GPUs of one host, of hosts x GPUs (H100:2x8; pip install '
        "'peftjax[gpu-plan]') or of a TPU slice (v5e:2x4; pip install libtpu), none of which need "
        "be here; 'here' for the default device",
    )
    _add_labels(parser)


def _versions() -> str:
    """What a report of a fault should name."""
    needed = [f'{name} {metadata.version(name)}' for name in ('jax', 'flax')]
    found = [f'peftjax {peftjax.__version__}', *needed, f'Python {platform.python_version()}']
    return ', '.join(found)


def _command(into: Any, name: str, run: Any, text: str, example: str) -> Any:
    parser = into.add_parser(name, help=text, description=text, epilog=f'example: {example}')
    parser.set_defaults(run=run)
    return parser


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--quantize',
        metavar='SCHEME',
        help="the base in few bits: 'nf4', 'int8', ...; 'stored' keeps a .gguf file's own",
    )


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--num-labels',
        type=int,
        metavar='N',
        help='classes of an encoder whose adapter brings its head',
    )
