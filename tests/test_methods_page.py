"""The page of methods is that of the docstrings, which hold what the page promises."""

import pathlib

import pytest

from tests import files_page
from tests.methods_page import docstring, methods, page

PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'methods.md'


def test_the_page_is_current():
    assert PAGE.read_text() == page(), 'run python -m tests.methods_page > docs/methods.md'


@pytest.mark.parametrize('name', methods())
def test_every_method_has_an_example_and_says_what_it_returns(name):
    text = docstring(methods()[name])
    assert '\n>>> ' in text and '\nReturns:\n' in text


def test_the_tables_of_files_are_current():
    assert files_page.PAGE.read_text() == files_page.page(), 'run python -m tests.files_page'
