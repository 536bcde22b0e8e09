"""Which rows share a program, and what they hold in common."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from peftjax.sweep.groups import group, prepare
from peftjax.sweep.train import members_of
from tests.tiny_sweeps import rows_of

pytestmark = pytest.mark.usefixtures('rows_are_traced_once')


def test_groups_are_rows_of_one_program_that_fit(config):
    changes = [
        *({'seed': seed, 'lora.rank': rank} for seed in (0, 1) for rank in (1, 2)),
        {'methods': ('select',)},
        {'data.batch_size': 4},
        {'schedule': 'cosine'},
    ]
    ready = prepare(rows_of(config, *changes))
    together = [[each.row.name for each in found.rows] for found in group(ready, 2**33, 32)]
    assert together == [['000', '001', '002', '003'], ['004'], ['005'], ['006']]
    first = group(ready, 2**33, 32)[0]
    room = group(ready[:4], first.base + 2.5 * (first.each + first.step), 32)
    assert [len(each.rows) for each in room] == [2, 2] and room[0].memory < first.memory
    assert [len(each.rows) for each in group(ready[:4], 2**33, 3)] == [2, 2]
    with pytest.raises(ValueError, match='run 000 takes .* MiB, more than .*accumulate'):
        group(ready, first.base + first.each, 32)


def test_ranks_share_a_program_only_where_the_optimiser_treats_each_entry_by_itself(config):
    """A mean over a leaf, as of Adafactor, would be another with zeros beside it."""

    def programs():
        return len({each.key for each in prepare(rows_of(config, *ranks))})

    ranks = [{'lora.rank': rank} for rank in (1, 2)]
    assert programs() == 1
    config.optimizer, config.adafactor = 'adafactor', ConfigDict()
    assert programs() == 2


def test_what_rows_hold_alike_is_held_once(config, tmp_path):
    config.methods, config.vera = ('vera',), ConfigDict({'rank': 4, 'targets': config.lora.targets})
    (mine,) = group(prepare(rows_of(config, {'lr': 1e-3}, {'lr': 1e-2})), 2**33, 32)
    first, second = members_of(mine, tmp_path)
    _, alone = second.run.start()
    trees = first.beside, second.beside, alone
    for one, other, expected in zip(*map(jax.tree.leaves, trees), strict=True):
        assert one is other
        np.testing.assert_array_equal(other, expected)
