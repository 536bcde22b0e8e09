"""The cost of a batch with an adapter for each row, against one adapter for all rows.

    python -m benchmarks.mixed_batches
    python -m benchmarks.mixed_batches --torch_python <a Python with torch, transformers, peft>

Forward passes of the MiniLM shape with 64 rows and LoRA r=8 on all matrices of its layers, with 64
adapters and with one, in turns; the same by `adapter_names` of Hugging Face peft. Then generation
with the SmolLM2 shape: 64 rows, 64 new tokens, 64 adapters and one, in turns; the time of another
adapter in a copy of the bank and in the bank itself, with its first token, and the base's first
token; and the memory of a bank of 1,000. Weights are random. A
ratio is the median over pairs, mixed / one.
"""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import peftjax
from benchmarks import report, turns
from benchmarks.cases import SIZES
from peftjax import serving
from peftjax.models.bert import Bert
from peftjax.models.llama import Llama

_PAIRS = flags.DEFINE_integer('pairs', 7, 'turns of each side')
_ROWS = flags.DEFINE_integer('batch_rows', 64, 'rows in a batch, and adapters')
_LENGTHS = flags.DEFINE_multi_integer('length', [32, 8, 1], 'tokens of a row; repeatable')
_NEW = flags.DEFINE_integer('new_tokens', 64, 'tokens to generate')
_SIZE = flags.DEFINE_enum('shape', 'real', ['real', 'tiny'], 'of the models')
_TORCH = flags.DEFINE_string('torch_python', None, 'a Python with torch, transformers and peft')

Take = Callable[[], object]


def paired(mixed: Take, one: Take, pairs: int) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median of the ratios pair by pair."""
    for take in (mixed, one):
        take()  # Compiles.
    found = [(_milliseconds(mixed), _milliseconds(one)) for _ in range(pairs)]
    both = (statistics.median(each) for each in zip(*found, strict=True))
    return *both, statistics.median(a / b for a, b in found)


def _milliseconds(take: Take) -> float:
    start = time.perf_counter()
    take()
    return 1e3 * (time.perf_counter() - start)


def bank_of(
    model: peftjax.Model, count: int
) -> tuple[list[serving.Trained], serving.Bank, peftjax.Frozen]:
    """Random adapters, as a list and as a bank."""
    tx = peftjax.lora(rank=8, targets='all-linear')
    first, beside = tx.init(jax.random.key(0), model)
    members = [(tx, peftjax.testing.perturb(first, seed, 0.02), beside) for seed in range(count)]
    return members, *serving.bank(model, members)


def forward_rows(lengths: list[int], rows: int, pairs: int, size: str) -> Iterator[tuple[str, ...]]:
    """A row of the table for each length, by peftjax."""
    module = Bert(SIZES['bert'][size])
    model = _model(module, jnp.ones((rows, lengths[0]), jnp.int32))
    members, bank, frozen = bank_of(model, rows)
    tx, adapter, beside = members[0]
    mixed, one = serving.adapt(model), peftjax.adapt(model, tx)
    slots = np.arange(1, rows + 1)
    for length in lengths:
        ids = jnp.asarray(np.random.default_rng(0).integers(0, 200, (rows, length)), jnp.int32)
        inputs = {'input_ids': ids, 'attention_mask': jnp.ones_like(ids)}

        def together(inputs: Any = inputs) -> Any:
            return jax.block_until_ready(mixed(bank, slots, frozen, **inputs))

        def alone(inputs: Any = inputs) -> Any:
            return jax.block_until_ready(one(adapter, beside, **inputs))

        yield _line(f'peftjax, {length} tokens', paired(together, alone, pairs))


def torch_rows(
    python: str, lengths: list[int], rows: int, pairs: int, size: str
) -> Iterator[tuple[str, ...]]:
    """The same by Hugging Face peft, whose turns run in a separate process."""
    for length in lengths:
        config = {
            name: getattr(SIZES['bert'][size], name)
            for name in (
                *('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers'),
                'num_attention_heads',
            )
        }
        task = {'config': config, 'rows': rows, 'length': length, 'cores': len(_cores())}
        command = [python, '-m', 'benchmarks.torch_mixed_batches', json.dumps(task)]
        with turns.Worker(command) as worker:
            # Its steps alternate: a mixed batch, then one adapter.
            found = worker.steps(2 * pairs)['ms']
        mixed, one = found[::2], found[1::2]
        ratio = statistics.median(a / b for a, b in zip(mixed, one, strict=True))
        medians = statistics.median(mixed), statistics.median(one)
        yield _line(f'torch peft, {length} tokens', (*medians, ratio))


def text_rows(rows: int, count: int, pairs: int, size: str) -> Iterator[tuple[str, ...]]:
    """Rows for text of a decoder, and for a new adapter."""
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 200, (rows, 16)), jnp.int32)
    model = _model(Llama(SIZES['llama'][size]), ids)
    members, bank, frozen = bank_of(model, rows)
    tx, adapter, beside = members[0]
    write, one = serving.generator(model), peftjax.generator(model, tx)
    slots = np.arange(1, rows + 1)

    def together() -> Any:
        return jax.block_until_ready(write(bank, slots, frozen, ids, max_new_tokens=count))

    def alone() -> Any:
        return jax.block_until_ready(one(adapter, beside, ids, max_new_tokens=count))

    yield _line(f'text, {rows} rows, {count} new tokens', paired(together, alone, pairs))
    short = ids[:1]
    write(bank, slots[:1], frozen, short, max_new_tokens=1)  # Compiles.
    turns_of = itertools.cycle([members[-1], members[0]])

    def changed(donate: bool) -> Any:
        nonlocal bank
        bank = serving.put(model, bank, frozen, 1, next(turns_of), donate=donate)
        return jax.block_until_ready(bank)

    def answer() -> Any:
        return np.asarray(write(changed(True), slots[:1], frozen, short, max_new_tokens=1))

    def base() -> Any:
        return np.asarray(write(bank, slots[:1] * 0, frozen, short, max_new_tokens=1))

    for name, take in {
        f'another adapter in a copy of a bank of {rows}': lambda: changed(False),
        'another adapter, donate=True': lambda: changed(True),
        'the same, and its first token': answer,
        'the first token of the base': base,
    }.items():
        yield (name, f'{statistics.median(_milliseconds(take) for _ in range(pairs)):.1f}', '', '')


def memory_row(size: str) -> tuple[str, ...]:
    """The ratio of the bytes of a bank of 1,000 adapters to those of the adapters, on MiniLM."""
    model = _model(Bert(SIZES['bert'][size]), jnp.ones((1, 4), jnp.int32))
    tx = peftjax.lora(rank=8, targets='all-linear')
    bank, _ = jax.eval_shape(lambda: serving.bank(model, transform=tx, slots=1001))
    adapter = jax.eval_shape(lambda: tx.init(jax.random.key(0), model)[0])
    sizes = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(each))
        for each in (bank, adapter)
    )
    whole, each = sizes
    return ('memory of a bank of 1,000 / of the adapters', '', '', f'{whole / (1000 * each):.3f}')


def _model(module: Any, ids: jax.Array) -> peftjax.Model:
    inputs = {'input_ids': ids, 'attention_mask': jnp.ones_like(ids)}
    variables = jax.jit(lambda key: module.init(key, **inputs))(jax.random.key(0))
    return peftjax.wrap(module, variables, inputs)


def _line(name: str, times: tuple[float, float, float]) -> tuple[str, ...]:
    return (name, *(f'{each:.1f}' for each in times[:2]), f'{times[2]:.2f}')


def _cores() -> set[int]:
    return os.sched_getaffinity(0)


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    lengths, rows, pairs, size = _LENGTHS.value, _ROWS.value, _PAIRS.value, _SIZE.value
    print(report.versions('jax', 'jaxlib', 'flax'))
    parts = [forward_rows(lengths, rows, pairs, size)]
    if _TORCH.value:
        parts.append(torch_rows(_TORCH.value, lengths, rows, pairs, size))
    parts += [text_rows(rows, _NEW.value, pairs, size), iter([memory_row(size)])]
    table: list[tuple[str, ...]] = [('', 'mixed ms', 'one ms', 'mixed / one')]
    for line in itertools.chain(*parts):
        print('  '.join(line), flush=True)
        table.append(line)
    print(report.plain(table))


if __name__ == '__main__':
    app.run(main)
