"""What the page about models of one's own shows is so: its code runs, its messages are raised."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import peftjax

PAGE = (Path(__file__).parent.parent / 'docs' / 'own_model.md').read_text()
_HEADS = re.split(r'^## (.*)\n', PAGE, flags=re.MULTILINE)
SECTIONS = {'': _HEADS[0], **dict(zip(_HEADS[1::2], _HEADS[2::2], strict=True))}
FLAX = ('Flax Linen', 'Flax NNX', 'Attention and sublayers of your own')
OTHERS = {
    'Equinox': 'equinox',
    'Haiku': 'haiku',
    'Flax models of transformers': 'transformers.models.bert.modeling_flax_bert',
}


def _blocks(section: str, language: str) -> list[str]:
    return re.findall(f'```{language}\n(.*?)```', SECTIONS[section], re.DOTALL)


def _start() -> dict[str, Any]:
    """The names that the examples share."""
    names: dict[str, Any] = {'__name__': 'page'}
    for section in ('', 'A check of your roles'):
        for block in _blocks(section, 'python'):
            exec(block, names)
    return names


def _run(section: str, wrong: dict[str, Any] | None = None) -> dict[str, Any]:
    names = {**_start(), **(wrong or {})}
    if section in OTHERS:
        pytest.importorskip(OTHERS[section])
    for block in _blocks(section, 'python'):
        exec(block, names)
    return names


def test_every_example_is_run():
    shown = [section for section in SECTIONS if _blocks(section, 'python')]
    assert shown == ['', 'A check of your roles', *FLAX, *OTHERS]


def test_the_section_of_the_table_names_every_role():
    named = set(re.findall(r'`(\w+)`', SECTIONS['Which method needs which role']))
    named |= set(re.findall(r'`(\w+)=', SECTIONS['Which method needs which role']))
    assert {field.name for field in dataclasses.fields(peftjax.Roles)} <= named


@pytest.mark.sampled
@pytest.mark.parametrize(
    'section', [*FLAX, *(pytest.param(o, marks=pytest.mark.slow) for o in OTHERS)]
)
def test_an_example_keeps_the_check(section):
    methods = []
    names = _start()

    def counted(model: peftjax.Model, tx: peftjax.PeftTransform, inputs: Any) -> None:
        names['check'](model, tx, inputs)
        methods.append(tx)

    _run(section, {'check': counted})
    assert len(methods) >= 2


@pytest.mark.parametrize(
    ('section', 'wrong', 'said'),
    [
        ('Flax Linen', {'along': ('mask',)}, 'has no effect'),
        ('Flax NNX', {'other': ('mask',)}, 'Not equal to tolerance'),
        pytest.param(
            'Equinox', {'other': ('mask',)}, 'Not equal to tolerance', marks=pytest.mark.slow
        ),
        pytest.param(
            'Haiku', {'other': ('mask',)}, 'Not equal to tolerance', marks=pytest.mark.slow
        ),
    ],
)
def test_the_check_finds_a_role_that_is_wrong(section, wrong, said):
    roles = peftjax.Roles(token_ids='ids', positions='positions', **wrong)
    with pytest.raises(AssertionError, match=said):
        _run(section, {'roles': roles})


def test_the_messages_that_are_shown_are_raised():
    missing, unknown = (
        ' '.join(block.split()) for block in _blocks('Which method needs which role', 'text')
    )
    names = _run('Flax Linen', {'roles': None, 'check': lambda *_: None})
    model, inputs, rows = names['model'], names['inputs'], names['rows']
    prompt = peftjax.prompt_tuning(num_virtual_tokens=2, targets='embed')
    with pytest.raises(peftjax.TargetError) as caught:
        prompt.init(names['key'], model)
    assert str(caught.value) == missing
    roles = peftjax.Roles(token_ids='ids', positions='positions')
    model = peftjax.wrap(names['module'], model.params, inputs(rows), roles=roles)
    tx = peftjax.gated(peftjax.lora(rank=2, targets='head'))
    with pytest.raises(ValueError) as refused:
        peftjax.adapt(model, tx)(*tx.init(names['key'], model), **inputs(rows))
    assert str(refused.value) == unknown


@pytest.mark.slow
@pytest.mark.parametrize('section', ['Equinox', 'Haiku'])
def test_a_function_has_no_modules(section):
    model = _run(section, {'check': lambda *_: None})['model']
    assert not model.sites.modules and model.sites.weights
    for tx in (
        peftjax.prompt_tuning(num_virtual_tokens=2, targets='embed'),
        peftjax.prefix_tuning(num_virtual_tokens=2, targets='attention'),
        peftjax.loreft(rank=2, targets='attention'),
        peftjax.bottleneck(size=2, reads='output', targets='attention'),
    ):
        with pytest.raises(peftjax.TargetError, match='matches no module of this model'):
            tx.init(_start()['key'], model)
