"""The site has a page for every method and every public name, and its tables are complete."""

import importlib
import pkgutil
import re

import jax
import pytest
from sphinx.util.inspect import signature, stringify_signature

import peftjax
from docs._ext import (
    binding_tables,
    block,
    catalogue,
    docstrings,
    files_tables,
    method_pages,
    pictures,
    recipes,
    reference_pages,
)
from docs._ext.catalogue import ROOT
from tests.structures import TABLE

ENTRIES = {name: entry for family in catalogue.families() for name, entry in family.methods.items()}


@pytest.mark.parametrize('name', catalogue.functions_of_methods())
def test_every_method_has_an_example_and_says_what_it_returns(name):
    text = catalogue.docstring(catalogue.functions_of_methods()[name])
    assert '\n>>> ' in text and '\nReturns:\n' in text


def test_the_table_of_methods_names_every_method_once():
    listed = [name for family in catalogue.families() for name in family.methods]
    assert sorted(listed) == sorted(catalogue.methods())


@pytest.mark.parametrize('name', ENTRIES)
def test_the_table_says_in_a_few_sentences_when_to_use_a_method(name):
    text = ENTRIES[name]['when'].strip()
    assert text.endswith('.') and 1 <= len(re.findall(r'[.!?](?:\s|$)', text)) <= 3


def test_every_config_of_a_method_stands_on_a_page():
    there = {
        path.stem
        for path in (ROOT / 'configs').glob('*.py')
        if 'def get_config(' in path.read_text()
    }
    listed = [config for entry in ENTRIES.values() for config in entry.get('configs', ())]
    assert len(listed) == len(set(listed))
    assert there - set(listed) == {'own_data'}  # a table of the reader's, for any method
    assert set(listed) <= there


def test_every_name_in_an_all_of_the_library_is_known_to_the_reference():
    known = {each.full for each in catalogue.public_names()} | set(catalogue.namespaces())
    for info in pkgutil.walk_packages(peftjax.__path__, 'peftjax.'):
        # Its import starts the command.
        if info.ispkg and info.name != 'peftjax.cli':
            for name in getattr(importlib.import_module(info.name), '__all__', ()):
                assert f'{info.name}.{name}' in known
    assert {f'peftjax.{name}' for name in peftjax.__all__} <= known


def test_what_pages_import_is_in_the_reference():
    known = {each.full for each in catalogue.public_names()} | set(catalogue.namespaces())
    # The models that pages make in place of those of the hub are no part of the interface.
    own = re.compile(r'peftjax\.models\..*')
    for page in [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')]:
        for module, names in re.findall(r'^from (peftjax\S*) import (.*)$', page.read_text(), re.M):
            for name in names.split(', '):
                full = f'{module}.{name}'
                assert full in known or own.fullmatch(full) or name == 'weightwise', page.name


def test_every_public_name_has_a_page_of_its_own():
    names = catalogue.public_names()
    pages = [each.page.lower() for each in names]
    assert len(set(pages)) == len(names) > 200
    written = {path for path, _ in reference_pages.pages()}
    methods = {f'methods/{name}' for name in ENTRIES}
    assert {each.page for each in names} <= written | methods
    assert {each.page for each in names if each.page.startswith('methods/')} == methods


def test_every_method_stands_in_the_tables_of_files():
    tables = files_tables.tables()
    for name in catalogue.methods():
        assert f'`{name}`' in tables.partition('## Read')[0], name


def test_every_structure_stands_in_the_tables_of_the_binding():
    tables = binding_tables.tables()
    for row in TABLE:
        assert f'| {row.name.replace("_", " ")} |' in tables
    assert sum(int(count) for count in re.findall(r'^## .*: (\d+)$', tables, re.M)) == len(TABLE)


def test_the_family_pages_link_their_methods():
    for family in catalogue.families():
        page = method_pages.family_page(family)
        assert all(f'[{name}]({name}.md)' in page for name in family.methods)


def test_a_family_is_the_folder_of_its_methods():
    for family in catalogue.families():
        for name in family.methods:
            folder = catalogue.methods()[name].__module__.split('.')[2]
            assert folder == family.name or family.name == 'combinations', name


def test_a_path_without_a_place_in_the_drawing_is_refused():
    mlp, tx = peftjax.testing.tiny_mlp(), peftjax.lora(rank=2, targets=r'hidden')
    adapter, frozen = tx.init(jax.random.key(0), mlp)
    with pytest.raises(ValueError, match='hidden/kernel'):
        block.places(tx.rules(adapter, frozen.own))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('lora', {'query': 'weights', 'value': 'weights'}),
        ('pfeiffer', {'after_ffn': 'activations'}),
        ('parallel_adapter', {'beside': 'activations'}),
        ('prefix_tuning', {'core': 'activations'}),
        ('prompt_tuning', {'tokens': 'activations', 'embedding': 'activations'}),
    ],
)
def test_drawings_mark_where_a_method_acts(name, expected):
    found = recipes.recipe(name).places
    assert found == expected
    drawing = block.draw(found, name)
    assert all(drawing.count(f'class="{kind}"') for kind in expected.values())


def test_the_picture_of_the_idea_is_that_of_the_code():
    assert (ROOT / 'docs/idea.svg').read_text() == pictures.idea(), (
        'run python -m docs._ext.pictures > docs/idea.svg'
    )


def test_memory_is_drawn_in_order_of_size():
    names = ('full', 'lora', 'vera')
    drawing = pictures.memory({name: recipes.recipe(name) for name in names})
    assert re.findall(r'class="name">(\w+)<', drawing) == ['lora', 'vera', 'full']


def test_the_chooser_says_which_methods_merge():
    found = {name: recipes.recipe(name) for name in ('lora', 'pfeiffer', 'gated', 'select')}
    assert [each.merges for each in found.values()] == [True, False, False, True]


def test_code_and_fields_of_a_docstring_become_those_of_the_site():
    lines = [
        'One of `a|b`, times 2 * 3, see :math:`x_1`.',
        '',
        'Attributes:',
        '  one, two: of `[*stack]`,',
        '    both.',
        '',
        'Returns:',
        '  A pair: `{a: b}`.',
        '',
        '>>> f(`x`)',
    ]
    lines = docstrings.as_rst('\n'.join(lines)).split('\n')
    assert lines[0] == r'One of ``a|b``, times 2 \* 3, see :math:`x_1`.'
    assert '    * **one, two** -- of ``[*stack]``, both.' in lines
    assert lines[lines.index(':returns:') + 1] == '  A pair: ``{a: b}``.'
    assert lines[-1] == '>>> f(`x`)'


def test_a_signature_has_short_names():
    long = stringify_signature(signature(peftjax.bottleneck))
    short = docstrings.short_names(long)
    assert 'Targets' in short and 'dtype: Any = float32' in short.replace('typing.', '')
    assert ' at 0x' not in short and 'ForwardRef' not in short
