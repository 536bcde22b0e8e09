"""`peftjax plan`: the costs of a training step, without the hardware and without weights."""

import argparse
import json
import pathlib
import tempfile
from typing import Any

import optax

import peftjax
from peftjax.cli.config_files import read_config
from peftjax.cli.parser import Parser, UsageError, add_config, settings_of, whole
from peftjax.cli.plan_settings import plans
from peftjax.cli.settings_flags import changed
from peftjax.cli.sizes import count, llama_of, read_size
from peftjax.cli.source import BASE, add_labels, load_base
from peftjax.train.method_calls import read_call
from peftjax.train.methods import build_transform
from peftjax.train.settings import Settings

_AXES = ('data', 'fsdp', 'tensor')
# Flags that describe a base, and the settings of a config that say the same.
_OF_A_BASE = {
    **{'quantize': 'model.quantize', 'remat': 'model.remat', 'num_labels': 'model.num_labels'},
    **{'batch': 'data.batch_size', 'length': 'data.lengths', 'method': 'methods'},
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        'base',
        nargs='?',
        help=f'{BASE}, with config.json at least; or a number of parameters such as 7B, for a '
        'Llama of that size (without --method, for the rule of thumb); omit it with --config',
    )
    parser.add_argument(
        '--method',
        action='append',
        default=[],
        metavar='CALL',
        help='a method of peftjax with its arguments; may be given again, for one row each',
    )
    parser.add_argument('--batch', type=whole(1), metavar='N', help='examples in a step; 8')
    parser.add_argument('--length', type=whole(1), metavar='N', help='tokens in an example; 512')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'))
    parser.add_argument('--remat', metavar='POLICY', help="'full', or a policy of jax by its name")
    add_quantize(parser)
    for axis in _AXES:
        parser.add_argument(
            f'--{axis}', type=whole(1), default=1, metavar='N', help='axis of the mesh'
        )
    parser.add_argument(
        '--machine',
        choices=tuple(peftjax.plan.MACHINES),
        help='the kind of each device; the default is that of --topology',
    )
    parser.add_argument(
        '--topology',
        metavar='H100:8',
        help='compile for GPUs of one host, for hosts x GPUs (H100:2x8; both: pip install '
        "'peftjax[gpu-plan]') or for a TPU slice (v5e:2x4; pip install libtpu), which need not be "
        "here; 'here' for the default device",
    )
    add_labels(parser)
    add_config(parser)
    parser.add_settings('model', 'data', 'run', 'mesh', sections=True)


def add_quantize(parser: Parser) -> None:
    """The flag that quantises the base."""
    parser.add_argument(
        '--quantize',
        metavar='SCHEME',
        help="quantise the base: 'nf4', 'int8', ...; 'stored' keeps the codes of a .gguf file",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints memory, FLOPs and time of a training step.

    Raises:
        ValueError: flags exclude each other, or a method or a size is wrong.
    """
    if (arguments.base is None) == (arguments.config is None):
        raise UsageError('give a base, or --config FILE')
    if arguments.config is not None:
        _plan_config(arguments)
        return
    if arguments.changes:
        raise UsageError(f'--{next(iter(arguments.changes))} changes a config: give --config too')
    size = read_size(arguments.base)
    if size is not None and not arguments.method:
        _print_textbook(size, arguments)
        return
    _plan_base(arguments, size)


def _plan_config(arguments: argparse.Namespace) -> None:
    for name, setting in _OF_A_BASE.items():
        if getattr(arguments, name):
            flag = name.replace('_', '-')
            raise UsageError(f'--{flag} goes with a base; with a config, write --{setting}')
    mesh = {f'mesh.{axis}': getattr(arguments, axis) for axis in _AXES}
    arguments.changes = {**{n: v for n, v in mesh.items() if v != 1}, **arguments.changes}
    settings = settings_of(arguments, read_config(arguments.config))
    print(peftjax.plan.table(plans(settings, arguments.machine, arguments.topology)))


def _plan_base(arguments: argparse.Namespace, size: float | None) -> None:
    batch = 8 if arguments.batch is None else arguments.batch
    length = 512 if arguments.length is None else arguments.length
    # This comes first: once JAX was used, it may not find the compiler of the topology.
    axes = {name: getattr(arguments, name) for name in _AXES}
    mesh = peftjax.plan.mesh_for(arguments.topology, **axes)
    options = {'abstract': True, 'dtype': arguments.dtype, 'remat': arguments.remat}
    options['quantize'] = arguments.quantize
    if size is None:
        model = load_base(arguments, **options)
    else:
        model = _load_llama(arguments, llama_of(size, length), options)
    inputs = peftjax.abstract_inputs(model, batch, length)
    rows = {
        call: peftjax.plan.plan(
            model,
            _method(call),
            optax.adamw(1e-4),
            inputs,
            mesh=mesh,
            machine=peftjax.plan.MACHINES[arguments.machine] if arguments.machine else None,
            compiled=arguments.topology is not None,
        )
        for call in arguments.method or ['full()']
    }
    print(peftjax.plan.table(rows))


def _print_textbook(size: float, arguments: argparse.Namespace) -> None:
    """Prints the memory of full fine-tuning by the number of parameters alone.

    Raises:
        ValueError: a flag needs the shape of a model.
    """
    flags = ('quantize', 'machine', 'topology', 'remat', 'batch', 'length', 'num_labels')
    given = [name for name in flags if getattr(arguments, name) is not None]
    given += [name for name in _AXES if getattr(arguments, name) != 1]
    if given:
        names = ', '.join('--' + name.replace('_', '-') for name in given)
        raise ValueError(
            f"{arguments.base} with {names} needs a method, for example --method 'full()': then a "
            'Llama of that size is planned'
        )
    for name, number in peftjax.plan.textbook(size, arguments.dtype).items():
        print(f'{name:10} {number / 1e9:10.1f} GB')
    print('full fine-tuning with Adam, everything in that dtype; without activations')


def _load_llama(
    arguments: argparse.Namespace, config: dict[str, Any], options: dict[str, Any]
) -> peftjax.Model:
    """Prints a line about the config.json, and loads its abstract model."""
    print(
        f'{arguments.base} as a Llama of {count(config):,} parameters: '
        f'{config["num_hidden_layers"]} layers, width {config["hidden_size"]}, inner width '
        f'{config["intermediate_size"]}, vocabulary {config["vocab_size"]}'
    )
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, 'config.json').write_text(json.dumps(config))
        return load_base(argparse.Namespace(**vars(arguments) | {'base': folder}), **options)


def _method(call: str) -> peftjax.PeftTransform:
    """`lora(rank=8)`: a public name, called with plain values; targets default to all matrices."""
    try:
        return build_transform(changed(Settings(), {}, [read_call(call)]))
    except TypeError as error:
        raise ValueError(f'{call!r}: {error}') from error
