"""The seven equalities, each on one adapted model; `None` where a model has nothing to compare."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax import serving
from tests.equalities.models import VOCABULARY

TOLERANCE = 1e-5
_RANDOM = np.random.default_rng(5)
ROWS = tuple(_RANDOM.integers(2, VOCABULARY, size).tolist() for size in (7, 4, 5))
READ = tuple(_RANDOM.integers(2, VOCABULARY, size).tolist() for size in (3, 6, 4))
_FEATURES = np.asarray(_RANDOM.normal(size=(3, 4, 12)), np.float32)
_DECODERS, _WRITERS = ('llama', 'gemma', 'gpt2'), ('t5', 'whisper')
_OWN = ('linen', 'nnx')


class Adapted(NamedTuple):
    """A model with a method in force.

    Attributes:
      name: of the model.
      predict: `predict(*args, **kwargs)`: what the adapted model returns.
      generate: `generate(rows, count)`: what it writes.
      members: adapters of a bank; the first is the one in force.
    """

    name: str
    model: peftjax.Model
    predict: Callable[..., Any]
    generate: Callable[[Sequence[int]], list[list[int]]]
    members: Sequence[serving.Trained]


def _padded(rows: Sequence[Any], side: str, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    length = max(map(len, rows))
    ids, mask = np.full((len(rows), length), pad), np.zeros((len(rows), length), np.int32)
    for number, row in enumerate(rows):
        place = slice(length - len(row), None) if side == 'left' else slice(0, len(row))
        ids[number, place], mask[number, place] = row, 1
    return ids.astype(np.int32), mask


def _inputs(name: str, numbers: Sequence[int], side: str) -> tuple[dict[str, Any], np.ndarray]:
    """Arguments of a call of these rows, and the mask of what it returns something for."""
    ids, mask = _padded([ROWS[n] for n in numbers], side, pad=1)
    if name == 'vit':
        images = np.asarray(np.random.default_rng(7).normal(size=(3, 3, 8, 8)), np.float32)
        return {'pixel_values': images[list(numbers)]}, np.ones((len(numbers), 1), np.int32)
    if name in _OWN:
        return {'ids': ids, 'real': mask}, mask
    if name in _WRITERS:
        written = {'decoder_input_ids': ids, 'decoder_attention_mask': mask}
        if name == 'whisper':
            return {'input_features': _FEATURES[list(numbers)], **written}, mask
        read, read_mask = _padded([READ[n] for n in numbers], side)
        return {'input_ids': read, 'attention_mask': read_mask, **written}, mask
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
    first = 2 if name == 'roberta' else 0
    return {'input_ids': ids, 'attention_mask': mask, 'position_ids': positions + first}, mask


def _rows_of(adapted: Adapted, numbers: Sequence[int], side: str = 'right') -> list[np.ndarray]:
    inputs, mask = _inputs(adapted.name, numbers, side)
    output = np.asarray(jax.tree.leaves(adapted.predict(**inputs))[0])
    if output.ndim < 3:
        return list(output)
    return [row[kept == 1] for row, kept in zip(output, mask, strict=True)]


def _close(found: Sequence[Any], expected: Sequence[Any]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        size = max(float(np.abs(theirs).max()), 1.0)
        error = float(np.abs(np.asarray(mine) - theirs).max()) / size
        assert error <= TOLERANCE, f'differs by {error:.2g} of its size'


def _alone(adapted: Adapted) -> list[np.ndarray]:
    return [_rows_of(adapted, [number])[0] for number in range(len(ROWS))]


def a_batch_is_each_row_alone(adapted: Adapted) -> bool:
    _close(_rows_of(adapted, range(len(ROWS))), _alone(adapted))
    return True


def padding_on_either_side_is_none(adapted: Adapted) -> bool:
    if adapted.name in ('vit', 'whisper'):
        return False  # No padding; positions are counted from the start of the row.
    _close(_rows_of(adapted, range(len(ROWS)), 'left'), _alone(adapted))
    return True


def packed_is_alone(adapted: Adapted) -> bool:
    if adapted.name not in _DECODERS:
        return False
    ids = np.concatenate(ROWS)[None].astype(np.int32)
    segments = np.repeat(np.arange(1, 1 + len(ROWS)), [len(row) for row in ROWS])[None]
    output = adapted.predict(input_ids=ids, segment_ids=segments.astype(np.int32))
    cuts = np.cumsum([len(row) for row in ROWS])[:-1]
    _close(np.split(np.asarray(output[0]), cuts), _alone(adapted))
    return True


def generation_is_full_calls(adapted: Adapted) -> bool:
    if adapted.name not in (*_DECODERS, *_WRITERS):
        return False
    numbers, count = [1, 2], 4
    written = np.asarray(adapted.generate(numbers))
    for number, tokens in zip(numbers, written, strict=True):
        full = [_full_call(adapted, number, tokens[:place].tolist()) for place in range(count)]
        for place, logits in enumerate(full):
            least = logits.max() - TOLERANCE * np.abs(logits).max()
            assert logits[tokens[place]] >= least, f'{tokens} is not what full calls say'
        cached = _by_cache(adapted, number, tokens) if number == numbers[0] else []
        if cached:
            _close(cached, full)
    return True


def _full_call(adapted: Adapted, number: int, said: list[int]) -> np.ndarray:
    """The logits behind a row and what was written of it, padded so that one program serves all."""
    row = [*(ROWS[number] if adapted.name in _DECODERS else [0]), *said]
    ids, mask = (each[:1] for each in _padded([row, [0] * 10], 'right'))
    if adapted.name in _DECODERS:
        inputs = {'input_ids': ids, 'attention_mask': mask}
    else:
        inputs, _ = _inputs(adapted.name, [number], 'right')
        if 'input_ids' in inputs:
            read = _padded([READ[number], [0] * 6], 'right')
            inputs |= {'input_ids': read[0][:1], 'attention_mask': read[1][:1]}
        inputs |= {'decoder_input_ids': ids, 'decoder_attention_mask': mask}
    return np.asarray(adapted.predict(**inputs))[0, len(row) - 1]


def _by_cache(adapted: Adapted, number: int, tokens: np.ndarray) -> list[np.ndarray]:
    """The same from one call a token; nothing where the method needs whole rows."""
    written = 'input_ids' if adapted.name in _DECODERS else 'decoder_input_ids'
    if adapted.name in _DECODERS:
        inputs = {'input_ids': np.asarray([ROWS[number]], np.int32)}
    else:
        inputs, _ = _inputs(adapted.name, [number], 'right')
        inputs = {**inputs, 'decoder_input_ids': np.zeros((1, 1), np.int32)}
        inputs.pop('decoder_attention_mask')
    try:
        logits, cache = adapted.predict(**inputs, cache_length=16)
    except ValueError as error:
        assert 'sees a part' in str(error)
        return []
    found = [np.asarray(logits)[0, -1]]
    for token in tokens[:-1]:
        logits, cache = adapted.predict(**{written: np.full((1, 1), token, np.int32)}, cache=cache)
        found.append(np.asarray(logits)[0, -1])
    return found


def a_mixed_batch_is_each_row_alone(adapted: Adapted) -> bool:
    """Row 1 has the adapter in force, row 2 no adapter, and row 0 another one."""
    model, slots = adapted.model, np.array([2, 0, 1])
    bank, frozen = serving.bank(model, adapted.members)
    mixed, predict = serving.adapt(model), peftjax.adapt(model, adapted.members[1][0])
    plain = peftjax.adapt(model, peftjax.chain())
    one_by_one = (
        lambda **inputs: predict(*adapted.members[1][1:], **inputs),
        lambda **inputs: plain((), peftjax.chain().freeze(model, ()), **inputs),
        adapted.predict,
    )
    alone = [
        _rows_of(adapted._replace(predict=each), [number])[0]
        for number, each in enumerate(one_by_one)
    ]
    together = adapted._replace(predict=lambda **inputs: mixed(bank, slots, frozen, **inputs))
    _close(_rows_of(together, range(len(ROWS))), alone)
    if adapted.name in (*_DECODERS, *_WRITERS):
        _check_text(adapted, bank, frozen)
    return True


def _check_text(adapted: Adapted, bank: serving.Bank, frozen: peftjax.Frozen) -> None:
    arguments = prompts(adapted.name, [1, 2])
    write = serving.generator(adapted.model)
    written = write(bank, np.array([1, 2]), frozen, *arguments, max_new_tokens=4)
    for row, (tx, *member) in enumerate(adapted.members):
        write = peftjax.generator(adapted.model, tx)
        alone = write(*member, *arguments, max_new_tokens=4)
        np.testing.assert_array_equal(written[row], alone[row])


def by_name_is_by_place(adapted: Adapted) -> bool:
    inputs, _ = _inputs(adapted.name, range(len(ROWS)), 'right')
    names = list(adapted.model.signature.parameters)
    last = max(names.index(name) for name in inputs)
    empty = inspect.Parameter.empty
    defaults = {n: p.default for n, p in adapted.model.signature.parameters.items()}
    args = [inputs.get(name, defaults[name]) for name in names[: last + 1]]
    assert empty not in [arg for arg in args if not hasattr(arg, 'shape')]
    _close(jax.tree.leaves(adapted.predict(*args)), jax.tree.leaves(adapted.predict(**inputs)))
    return True


def ignored_labels_count_nowhere(adapted: Adapted) -> bool:
    if adapted.name not in (*_DECODERS, *_WRITERS):
        return False
    inputs, mask = _inputs(adapted.name, range(len(ROWS)), 'right')
    labels = np.where(mask == 1, 3, -100).astype(np.int32)
    ignored = labels.copy()
    ignored[:, 1] = -100
    whole, less = (adapted.predict(**inputs, targets=each) for each in (labels, ignored))
    assert whole.losses.shape == labels.shape
    _close([np.where(ignored >= 0, whole.losses, 0.0)], [np.asarray(less.losses)])
    np.testing.assert_array_equal(less.counted, ignored >= 0)
    assert not (np.asarray(less.correct) & (ignored < 0)).any()
    return True


LAWS: dict[str, Callable[[Adapted], bool]] = {
    'batch': a_batch_is_each_row_alone,
    'padding': padding_on_either_side_is_none,
    'packed': packed_is_alone,
    'generation': generation_is_full_calls,
    'mixed': a_mixed_batch_is_each_row_alone,
    'place': by_name_is_by_place,
    'labels': ignored_labels_count_nowhere,
}


def adapted(name: str, model: peftjax.Model, transform: peftjax.PeftTransform) -> Adapted:
    """The model with drawn numbers of the method in force."""
    adapter, frozen = transform.init(jax.random.key(1), model)
    adapter = peftjax.testing.perturb(adapter, 0, 0.3)
    predict = peftjax.adapt(model, transform)

    def generate(numbers: Sequence[int]) -> Any:
        write = peftjax.generator(model, transform)
        return write(adapter, frozen, *prompts(name, numbers), max_new_tokens=4)

    other = peftjax.testing.perturb(adapter, 3, 0.3)
    members = [(transform, each, frozen) for each in (adapter, other)]
    return Adapted(
        name,
        model,
        lambda *args, **kwargs: predict(adapter, frozen, *args, **kwargs),
        generate,
        members,
    )


def prompts(name: str, numbers: Sequence[int]) -> list[Any]:
    """What `generate` takes of these rows: features, or ids and their mask."""
    if name == 'whisper':
        return [_FEATURES[list(numbers)]]
    rows = [(READ if name == 't5' else ROWS)[number] for number in numbers]
    ids, mask = _padded(rows, 'right' if name == 't5' else 'left')
    return [jnp.asarray(ids), mask]
