"""Published counts, reproduced by the methods on abstract models."""

import pytest

from benchmarks import paper_counts

ROWS = paper_counts.read()
# Methods of the tables that peftjax does not have.
ABSENT = {'PrefixLayer', 'LoRA+PL'}


@pytest.mark.parametrize('part', ROWS)
def test_every_row_is_what_its_papers_description_gives(part):
    counts = [paper_counts.count(row) for row in ROWS[part]]
    without = {each.row['method'] for each in counts if each.ours is None}
    assert without <= ABSENT
    wrong = [
        (row['paper'], row['method'], row['model']['name'], ours, row['computed_trainable'])
        for row, ours in counts
        if ours is not None and ours != row['computed_trainable']
    ]
    assert not wrong
    assert sum(each.equal for each in counts) == {'reproduce': 157, 'do_not_reproduce': 45}[part]


def test_a_row_whose_number_is_another_is_not_equal():
    row = ROWS['reproduce'][0]
    assert paper_counts.count(row).equal
    assert not paper_counts.count({**row, 'computed_trainable': 1}).equal
