"""What each command does with its arguments."""

import argparse
import ast
import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import optax

import peftjax
from peftjax.cli.sizes import count, llama_of, read_size

_AXES = ('data', 'fsdp', 'tensor')


def _load(arguments: argparse.Namespace, **options: Any) -> peftjax.Model:
    """The base as its adapters mean it: an encoder with a head, if it or they have one."""
    base, labels = arguments.base, arguments.num_labels
    if labels is not None:
        return peftjax.load(base, task='classification', num_labels=labels, **options)
    try:
        return peftjax.load(base, task='classification', **options)
    except ValueError:
        return peftjax.load(base, **options)


def inspect(arguments: argparse.Namespace) -> None:
    """Prints what a checkpoint offers to methods, or what an adapter trains of it."""
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


def merge(arguments: argparse.Namespace) -> None:
    """Writes a checkpoint that computes what base and adapter do together."""
    model = _load(arguments, scan=False)
    loaded = peftjax.load_adapter(arguments.adapter, model)
    merged = loaded.transform.merge(loaded.adapter, loaded.frozen)
    merged = jax.tree.map(lambda leaf: leaf.astype(arguments.dtype), merged)
    peftjax.save_checkpoint(arguments.out, model, merged, arguments.base)
    print(arguments.out)


def convert(arguments: argparse.Namespace) -> None:
    """Writes an adapter in the files of another library."""
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


def export(arguments: argparse.Namespace) -> None:
    """Writes a LoRA as a GGUF adapter."""
    model = peftjax.load(arguments.base, scan=False)
    loaded = peftjax.load_adapter(arguments.adapter, model)
    peftjax.export_gguf(arguments.out, model, loaded.transform, loaded.adapter, name=arguments.name)
    print(arguments.out)


def generate(arguments: argparse.Namespace) -> None:
    """Prints what a decoder writes behind each prompt."""
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


def plan(arguments: argparse.Namespace) -> None:
    """Prints what a training step takes.

    Raises:
        ValueError: no example, or no token in one.
    """
    for name in ('batch', 'length'):
        given = getattr(arguments, name)
        if given is not None and given < 1:
            raise ValueError(f'--{name} {given} is below 1; write 1 or more')
    size = read_size(arguments.base)
    if size is not None and not arguments.method:
        _print_textbook(size, arguments)
        return
    batch = 8 if arguments.batch is None else arguments.batch
    length = 512 if arguments.length is None else arguments.length
    # Before anything else uses JAX, which else may give the compiler of the topology up.
    axes = {name: getattr(arguments, name) for name in _AXES}
    mesh = peftjax.plan.mesh_for(arguments.topology, **axes)
    options = {'abstract': True, 'dtype': arguments.dtype, 'remat': arguments.remat}
    options['quantize'] = arguments.quantize
    if size is None:
        model = _load(arguments, **options)
    else:
        model = _load_llama(arguments, llama_of(size, length), options)
    inputs = peftjax.abstract_inputs(model, batch, length)
    plans = {
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
    print(peftjax.plan.table(plans))


def _print_textbook(size: float, arguments: argparse.Namespace) -> None:
    """What full fine-tuning of so many parameters takes, of whatever model.

    Raises:
        ValueError: flags that need the shape of a model.
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
    print('full fine-tuning with Adam, everything in that dtype; activations aside')


def _load_llama(
    arguments: argparse.Namespace, config: dict[str, Any], options: dict[str, Any]
) -> peftjax.Model:
    """The abstract model of a config.json, and a line about it."""
    print(
        f'{arguments.base} as a Llama of {count(config):,} parameters: '
        f'{config["num_hidden_layers"]} layers, width {config["hidden_size"]}, inner width '
        f'{config["intermediate_size"]}, vocabulary {config["vocab_size"]}'
    )
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, 'config.json').write_text(json.dumps(config))
        return _load(argparse.Namespace(**vars(arguments) | {'base': folder}), **options)


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
