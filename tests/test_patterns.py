"""Patterns are matched as Python's `re` does, and in linear time where RE2 can."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax.core.patterns import matcher

PIECES = (
    *('a', 'b', 'layers', '_', '/', '.', '.*', '.+?', '[ab]', '[^/]', r'\d+', r'\w', r'\.', 'a?'),
    *('(a|b)', '(?:ab)*', 'a{2}', 'a{1,3}', '(layers/)?', '(?=a)', '(?!b)', '$', '^', '|', r'\b'),
)


@given(
    st.lists(st.sampled_from(PIECES), max_size=7).map(''.join),
    st.text('ab_/.layers0', max_size=12),
)
def test_a_pattern_matches_what_it_matches_in_python(pattern, path):
    try:
        wanted = re.fullmatch(pattern, path) is not None
    except re.error:
        with pytest.raises(re.error):
            matcher(pattern)
    else:
        assert matcher(pattern).fullmatch(path) == wanted


@pytest.mark.parametrize(
    'pattern', ['.?' * 60 + '!', '(.|.)*!', '(a*)*!', '(a|aa)+!', '(a?){60}a!']
)
def test_patterns_that_would_backtrack_take_no_time(pattern):
    began = time.perf_counter()
    assert not matcher(pattern).fullmatch('a' * 200)
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    ('pattern', 'path'), [('größe', 'größe'), (r'\w+', 'größe'), ('a{,2}', 'aa'), ('(a)\\1', 'aa')]
)
def test_what_the_two_read_otherwise_is_left_to_python(pattern, path):
    assert matcher(pattern).fullmatch(path)
