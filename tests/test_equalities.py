"""A row means the same in any batch, padded or packed, by name or place, and token by token.

`python -m tests.equalities` prints the whole table.
"""

import pytest

from tests.equalities.methods import METHODS
from tests.equalities.models import MODELS
from tests.equalities.table import cell

# Each kind of method on one model; the rest of the table is slow. By default a quarter of these
# cases run, by the mark `sampled`.
_BY_DEFAULT = {
    ('gated lora', 'llama'),
    ('placed prompt', 'gemma'),
    ('gated prefix', 'gpt2'),
    ('adaption prompt', 'nnx'),
    ('gated bottleneck', 'whisper'),
    ('reft first', 't5'),
    ('prompt', 'linen'),
    ('prefix', 'roberta'),
}
# What cannot be right, by method and model: all else holds.
_WITHOUT = {'vit': 'nothing is embedded'}


def _cases():
    for method in METHODS:
        for name in MODELS:
            marks = () if (method, name) in _BY_DEFAULT else pytest.mark.slow
            yield pytest.param(method, name, marks=marks)


def _may_refuse(method: str, name: str) -> bool:
    if 'prompt' in method and method != 'adaption prompt':
        return name in _WITHOUT
    if method == 'activated lora':
        return name in ('t5', 'whisper', 'vit')  # Two sequences, or none of tokens.
    return method == 'adaption prompt' and name == 'gpt2'  # One projection makes all three.


@pytest.mark.sampled
@pytest.mark.parametrize(('method', 'name'), list(_cases()))
def test_equalities_hold_or_are_refused(method, name):
    found = cell(method, name)
    wrong = {law: text for law, (mark, text) in found.items() if mark == 'X'}
    assert not wrong
    refused = {law: text for law, (mark, text) in found.items() if mark == 'r'}
    assert _may_refuse(method, name) or _is_partly_refused(method, name, refused), refused
    assert all(refused.values())
    assert any(mark in 'hr' for mark, _ in found.values())


def _is_partly_refused(method: str, name: str, refused: dict[str, str]) -> bool:
    """Whether a method that the model takes refuses those laws for a reason.

    A prefix with a gate has one number for a row, and virtual tokens have one place in a row. In a
    mixed batch virtual tokens stand in front, and positions are counted without those of others.
    """
    with_gate = method in ('gated prefix', 'unipelt')
    prompt = 'prompt' in method and method != 'adaption prompt'
    may = {'packed'} if with_gate or 'prompt' in method else set()
    if method == 'placed prompt' or (prompt and name in ('linen', 'nnx')):
        may |= {'mixed'}
    return set(refused) <= may
