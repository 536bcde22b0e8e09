"""Which cases of a long table run by default."""

import collections
from typing import Any

import pytest

import conftest

CASES = [f'tests/test_a.py::test_a[{number}]' for number in range(18)]


class _Item:
    """A test, in what the hook asks of it."""

    def __init__(self, nodeid, *marks):
        self.nodeid, self.marks = nodeid, set(marks)

    def get_closest_marker(self, name):
        return name if name in self.marks else None

    def add_marker(self, mark):
        self.marks.add(mark.name)


_Config = collections.namedtuple('_Config', 'option args')
_Option = collections.namedtuple('_Option', 'keyword lf')


def run_by_default(names=CASES, slow=(), keyword='', lf=False, args=('tests',)):
    """The names that the hook leaves without the mark `slow`."""
    config: Any = _Config(_Option(keyword, lf), list(args))
    items: list[Any] = [
        _Item(name, 'sampled', *(['slow'] if name in slow else [])) for name in names
    ]
    conftest.pytest_collection_modifyitems(config, items)
    return {item.nodeid for item in items if 'slow' not in item.marks}


def test_a_quarter_runs_and_at_least_one():
    assert len(run_by_default()) == 5
    assert len(run_by_default(CASES[:1])) == 1


def test_slow_cases_do_not_count():
    slow = sorted(run_by_default())
    assert len(run_by_default(slow=slow)) == 4


def test_the_order_of_the_cases_does_not_matter():
    assert run_by_default(CASES[::-1]) == run_by_default()


@pytest.mark.parametrize('number', range(8))
def test_a_new_case_changes_at_most_one(number):
    more = run_by_default([*CASES, f'tests/test_a.py::test_a[new {number}]'])
    assert len(run_by_default() - more) <= 1


def test_tables_are_sampled_one_by_one():
    others = [name.replace('test_a[', 'test_b[') for name in CASES]
    assert run_by_default() < run_by_default([*CASES, *others])


def test_pytest_without_its_cache_has_no_option_lf():
    config: Any = _Config(collections.namedtuple('Option', 'keyword')(''), ['tests'])
    conftest.pytest_collection_modifyitems(config, [])


def test_what_is_asked_for_runs():
    assert run_by_default(keyword='hra') == set(CASES)
    assert run_by_default(lf=True) == set(CASES)
    asked = sorted(set(CASES) - run_by_default())[:2]
    assert run_by_default(asked, args=asked) == set(asked)
