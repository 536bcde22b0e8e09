"""The page about merging computes what it says."""

import math
import re

from matplotlib.figure import Figure

from peftjax import merging
from tests.test_imports import ROOT


def test_the_page_runs_and_its_numbers_are_right(capsys):
    page = (ROOT / 'docs/merging.md').read_text()
    names: dict = {}
    for block in re.findall(r'```python\n(.*?)```', page, re.DOTALL):
        exec(block, names)
    for path, off in names['off'].items():
        said = re.search(rf'`{path}` (0\.\d\d)', page)
        assert said is not None and math.isclose(float(said[1]), off, abs_tol=0.006), (path, off)
    assert 'cos second' in capsys.readouterr().out
    public = set(re.findall(r'`(?:merging\.)?(\w+)', page))
    rules = {'slerp', 'sce', 'della', 'greedy_soup', 'heat_map', 'intruder_dimensions'}
    assert rules <= public & set(merging.__all__)


def test_a_heat_map_has_its_numbers():
    axes = Figure().subplots()
    merging.heat_map(axes, [[1.0, -0.8], [-0.8, 1.0]], ['first', 'second'])
    assert [each.get_text() for each in axes.texts] == ['1.00', '-0.80', '-0.80', '1.00']
    assert [each.get_text() for each in axes.get_yticklabels()] == ['first', 'second']
