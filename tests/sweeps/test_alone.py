"""Rows of one program are the runs they would be alone."""

import jax
import pytest
from ml_collections import ConfigDict

from peftjax.sweep import groups, program
from peftjax.sweep.groups import group, prepare
from tests.tiny_sweeps import FOUR, RATES, TWO, assert_as_alone, rows_of, run

pytestmark = pytest.mark.usefixtures('rows_are_traced_once')


@pytest.mark.slow
def test_rows_are_what_they_would_be_alone(config, alone, tmp_path):
    """Other seeds, rates, ranks, alphas, dropout and lengths of run, in one program."""
    rows = rows_of(config, *FOUR)
    assert len(group(prepare(rows), 2**33, 32)) == 1
    run(rows, tmp_path / 'sweep')
    for row in rows[1:3]:
        assert_as_alone(row, tmp_path / 'sweep', alone)


@pytest.mark.slow
def test_numbers_of_what_is_around_the_optimiser_share_a_program(config, alone, tmp_path):
    config.around, config.lora_plus = ('lora_plus',), ConfigDict({'ratio': 4.0})
    rows = rows_of(config, {'lora_plus.ratio': 2.0}, {'lora_plus.ratio': 16.0})
    assert len(group(prepare(rows), 2**33, 32)) == 1
    run(rows, tmp_path / 'sweep')
    assert_as_alone(rows[0], tmp_path / 'sweep', alone)


def test_a_row_without_dropout_is_beside_others_what_it_is_alone(config, alone, tmp_path):
    rows = rows_of(config, {'lora.dropout': 0.3}, {'lora.dropout': 0.0})
    assert len(group(prepare(rows), 2**33, 32)) == 1
    run(rows, tmp_path / 'sweep')
    assert_as_alone(rows[1], tmp_path / 'sweep', alone)


@pytest.mark.slow
def test_masks_of_dropout_are_those_of_the_row_alone(config, alone, tmp_path):
    """With several lengths, rows of one order of the data are side by side, and no others."""
    config.data.lengths = (4, 6, 8)
    rows = rows_of(config, *TWO)
    run(rows, tmp_path / 'sweep')
    assert_as_alone(rows[1], tmp_path / 'sweep', alone)


@pytest.mark.slow
@pytest.mark.parametrize('busy', [1, 2**20], ids=['one after another', 'side by side'])
def test_rows_of_several_lengths_are_what_they_would_be_alone(
    config, alone, tmp_path, monkeypatch, busy
):
    monkeypatch.setattr(groups, 'BUSY', busy)
    config.data.lengths, config.lora.dropout = (4, 6, 8), 0.0
    rows = rows_of(config, *TWO)
    run(rows, tmp_path / 'sweep')
    assert_as_alone(rows[1], tmp_path / 'sweep', alone)


@pytest.mark.slow
def test_rows_that_divide_evenly_are_split_over_devices(config, alone, tmp_path, monkeypatch):
    """Eight rows on the eight devices of the tests, each with one; seven with none of it."""
    spread = []
    take = program._Program._take

    def noted(self, tree, axes, part):
        taken = take(self, tree, axes, part)
        spread.append({len(leaf.sharding.device_set) for leaf in jax.tree.leaves(taken)})
        return taken

    monkeypatch.setattr(program._Program, '_take', noted)
    rows = rows_of(config, *FOUR, *RATES)
    assert len(group(prepare(rows), 2**33, 32)) == 1
    run(rows, tmp_path / 'sweep')
    assert spread[:2] == [{8}, {8}]
    for row in rows[1:3]:
        assert_as_alone(row, tmp_path / 'sweep', alone)
