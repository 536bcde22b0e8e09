"""The command `peftjax`: looks at checkpoints and adapters, merges, converts and runs them."""

import argparse
import ast
import platform
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import optax

import peftjax
from peftjax import training

_SOURCE = (
    "a folder in Hugging Face layout, 'org/name' on the hub, a .gguf file, or "
    "'package:name/sub/folder'"
)
_ADAPTER = "a folder with adapter_config.json and adapter_model.safetensors, or 'org/name'"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if it did what was asked, 2 with one line of text if it could not."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f'peftjax {arguments.command}: {error}', file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='peftjax',
        description='Adapters and checkpoints, from the command line.',
        epilog='peftjax COMMAND --help says what a command takes, with an example.',
    )
    parser.add_argument('--version', action='version', version=_versions())
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    inspect = _command(
        commands,
        'inspect',
        _inspect,
        'what a checkpoint offers to methods, or what an adapter trains of it',
        'peftjax inspect HuggingFaceTB/SmolLM2-135M-Instruct --adapter my_adapter',
    )
    inspect.add_argument('base', help=_SOURCE)
    inspect.add_argument('--adapter', help=_ADAPTER)
    _add_labels(inspect)

    merge = _command(
        commands,
        'merge',
        _merge,
        'write a checkpoint that computes what base and adapter do together',
        'peftjax merge HuggingFaceTB/SmolLM2-135M-Instruct my_adapter merged',
    )
    merge.add_argument('base', help=_SOURCE + '; not a .gguf file')
    merge.add_argument('adapter', help=_ADAPTER)
    merge.add_argument('out', help='the folder to write; transformers and peftjax.load read it')
    _add_labels(merge)
    merge.add_argument(
        '--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'), help='of the file'
    )

    convert = _command(
        commands,
        'convert',
        _convert,
        'write an adapter in the files of another library',
        'peftjax convert google-bert/bert-base-uncased my_adapter hub_adapter --to adapterhub',
    )
    convert.add_argument('base', help=_SOURCE)
    convert.add_argument('adapter', help=_ADAPTER + "; either library's")
    convert.add_argument('out', help='the folder to write')
    convert.add_argument('--to', required=True, choices=('peft', 'adapterhub'))
    convert.add_argument('--name', default='default', help="the adapter's, which adapterhub keeps")
    _add_labels(convert)

    export = _command(
        commands,
        'export',
        _export,
        'write a LoRA as a GGUF adapter, for llama.cpp',
        'peftjax export HuggingFaceTB/SmolLM2-135M-Instruct my_adapter my_adapter.gguf',
    )
    export.add_argument('base', help=_SOURCE)
    export.add_argument('adapter', help=_ADAPTER)
    export.add_argument('out', help='the .gguf file to write; llama-cli takes it as --lora')
    export.add_argument('--name', default='', help='what the file calls the adapter')

    generate = _command(
        commands,
        'generate',
        _generate,
        'let a decoder go on with a text',
        "peftjax generate HuggingFaceTB/SmolLM2-135M --prompt 'The sea is' --adapter my_adapter",
    )
    generate.add_argument('base', help=_SOURCE)
    generate.add_argument('--prompt', required=True, action='append', help='may be given again')
    generate.add_argument('--adapter', help=_ADAPTER)
    generate.add_argument('--max-new-tokens', type=int, default=64, metavar='N')
    generate.add_argument('--temperature', type=float, default=0.0, help='0 takes the best token')
    generate.add_argument('--top-k', type=int, metavar='K')
    generate.add_argument('--top-p', type=float, default=1.0, metavar='P')
    generate.add_argument('--seed', type=int, default=0)
    _add_quantize(generate)

    plan = _command(
        commands,
        'plan',
        _plan,
        'what a training step takes: memory, products, time, and whether it fits; weights are not '
        'needed',
        'peftjax plan huggyllama/llama-7b --method "lora(rank=8, targets=r\'.*/(q|v)_proj\')" '
        "--method 'full()' --dtype bfloat16 --remat full --batch 8 --length 2048 --fsdp 8 "
        '--machine v5e',
    )
    plan.add_argument(
        'base', help=f"{_SOURCE}, with config.json at least; or a number of parameters, '7B'"
    )
    plan.add_argument(
        '--method',
        action='append',
        default=[],
        metavar='CALL',
        help='a method of peftjax with its arguments; may be given again, one row each',
    )
    plan.add_argument('--batch', type=int, default=8, metavar='N', help='examples in a step')
    plan.add_argument('--length', type=int, default=512, metavar='N', help='tokens in an example')
    plan.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'))
    plan.add_argument('--remat', metavar='POLICY', help="'full', or a policy of jax by its name")
    _add_quantize(plan)
    for axis in ('data', 'fsdp', 'tensor'):
        plan.add_argument(f'--{axis}', type=int, default=1, metavar='N', help='axis of the mesh')
    plan.add_argument('--machine', choices=tuple(training.MACHINES), help='each device')
    plan.add_argument(
        '--topology',
        metavar='v5e:2x4',
        help="ask the TPU compiler for such a slice (pip install libtpu); 'here' for the default "
        'device',
    )
    _add_labels(plan)
    return parser


def _versions() -> str:
    """What a report of a fault should name."""
    needed = [f'{name} {metadata.version(name)}' for name in ('jax', 'flax')]
    found = [f'peftjax {peftjax.__version__}', *needed, f'Python {platform.python_version()}']
    return ', '.join(found)


def _command(commands: Any, name: str, run: Any, text: str, example: str) -> Any:
    parser = commands.add_parser(name, help=text, description=text, epilog=f'example: {example}')
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


def _load(arguments: argparse.Namespace, **options: Any) -> peftjax.Model:
    """The base as its adapters mean it: an encoder with a head, if it or they have one."""
    base, labels = arguments.base, arguments.num_labels
    if labels is not None:
        return peftjax.load(base, task='classification', num_labels=labels, **options)
    try:
        return peftjax.load(base, task='classification', **options)
    except ValueError:
        return peftjax.load(base, **options)


def _inspect(arguments: argparse.Namespace) -> None:
    if arguments.adapter is None:
        model = _load(arguments, abstract=True)
        print(model.sites)
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        print(f'\n{count:,} parameters')
        return
    model = _load(arguments, scan=False)
    loaded = peftjax.load_adapter(arguments.adapter, model)
    print(repr(loaded.transform))
    print(peftjax.summary(loaded.transform, model))


def _merge(arguments: argparse.Namespace) -> None:
    model = _load(arguments, scan=False)
    loaded = peftjax.load_adapter(arguments.adapter, model)
    merged = loaded.transform.merge(loaded.adapter, loaded.frozen)
    merged = jax.tree.map(lambda leaf: leaf.astype(arguments.dtype), merged)
    peftjax.save_checkpoint(arguments.out, model, merged, arguments.base)
    print(arguments.out)


def _convert(arguments: argparse.Namespace) -> None:
    model = _load(arguments, scan=False)
    loaded = peftjax.load_adapter(arguments.adapter, model)
    peftjax.save_adapter(
        arguments.out,
        model,
        loaded.transform,
        loaded.adapter,
        base_model=arguments.base,
        form=arguments.to,
        name=arguments.name,
    )
    print(arguments.out)


def _export(arguments: argparse.Namespace) -> None:
    model = peftjax.load(arguments.base, scan=False)
    loaded = peftjax.load_adapter(arguments.adapter, model)
    peftjax.export_gguf(arguments.out, model, loaded.transform, loaded.adapter, name=arguments.name)
    print(arguments.out)


def _generate(arguments: argparse.Namespace) -> None:
    model = peftjax.load(
        arguments.base, scan=arguments.adapter is None, quantize=arguments.quantize
    )
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f'{arguments.base} has no tokenizer.json to read the prompt with')
    if arguments.adapter is None:
        transform = peftjax.chain()
        adapter, frozen = (), transform.freeze(model, ())
    else:
        transform, adapter, frozen, _ = peftjax.load_adapter(arguments.adapter, model)
    pad = 0 if tokenizer.eos_id is None else tokenizer.eos_id
    ids, mask = peftjax.pad_left([tokenizer.encode(text) for text in arguments.prompt], pad)
    written = peftjax.generator(model, transform)(
        adapter,
        frozen,
        jnp.asarray(ids),
        mask,
        max_new_tokens=arguments.max_new_tokens,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=pad,
        sampling=peftjax.Sampling(arguments.temperature, arguments.top_k, arguments.top_p),
        key=jax.random.key(arguments.seed),
    )
    for prompt, row in zip(arguments.prompt, written.tolist(), strict=True):
        print(prompt + tokenizer.decode(row))


def _plan(arguments: argparse.Namespace) -> None:
    size = re.fullmatch(r'(\d+(?:\.\d+)?)([MBT])', arguments.base)
    if size:
        parameters = float(size[1]) * {'M': 1e6, 'B': 1e9, 'T': 1e12}[size[2]]
        for name, number in training.textbook(parameters, arguments.dtype).items():
            print(f'{name:10} {number / 1e9:10.1f} GB')
        print('full fine-tuning with Adam, everything in that dtype; activations aside')
        return
    axes = {name: getattr(arguments, name) for name in ('data', 'fsdp', 'tensor')}
    options = {'abstract': True, 'dtype': arguments.dtype, 'remat': arguments.remat}
    options['quantize'] = arguments.quantize
    model = _load(arguments, **options)
    inputs = peftjax.abstract_inputs(model, arguments.batch, arguments.length)
    plans = {
        call: training.plan(
            model,
            _method(call),
            optax.adamw(1e-4),
            inputs,
            mesh=training.mesh_for(arguments.topology, **axes),
            machine=training.MACHINES[arguments.machine] if arguments.machine else None,
            compiled=arguments.topology is not None,
        )
        for call in arguments.method or ['full()']
    }
    print(training.table(plans))


def _method(call: str) -> peftjax.PeftTransform:
    """`lora(rank=8, targets='q')`: a public name, called with plain values."""
    try:
        tree = ast.parse(call, mode='eval').body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError('no call')
        values = [ast.literal_eval(each) for each in tree.args]
        named = {str(each.arg): ast.literal_eval(each.value) for each in tree.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f'{call!r} does not read as a method with plain arguments; write for example '
            'lora(rank=8, targets=".*/q_proj")'
        ) from error
    make: Any = getattr(peftjax, tree.func.id, None) if tree.func.id in peftjax.__all__ else None
    if not str(getattr(make, '__module__', '')).startswith('peftjax.methods.'):
        raise ValueError(f'{tree.func.id!r} is no method of peftjax; see docs/methods.md')
    try:
        return make(*values, **named)
    except TypeError as error:
        raise ValueError(f'{call!r}: {error}') from error


if __name__ == '__main__':
    sys.exit(main())
