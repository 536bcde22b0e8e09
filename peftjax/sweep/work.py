"""Trains the free groups of a sweep in this process."""

import time
from collections.abc import Sequence
from typing import Protocol

from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.groups import Group
from peftjax.sweep.pruning import Prune
from peftjax.sweep.train import train_group
from peftjax.train.hooks import Tell


class Work(Protocol):
    """Trains groups, wherever."""

    def __call__(
        self, groups: Sequence[Group], folder: SweepFolder, prune: Prune, tell: Tell, wait: bool
    ) -> None:
        """Trains the groups that no other process works on.

        Args:
            groups: the unfinished groups.
            folder: of the sweep.
            prune: which rows stop early.
            tell: gets the state of the rows.
            wait: wait for groups of other workers, and take over a group whose worker ended.
        """
        ...


def here(
    groups: Sequence[Group], folder: SweepFolder, prune: Prune, tell: Tell, wait: bool
) -> None:
    """`Work` in this process, one group after another."""
    left = list(groups)
    while left:
        for each in left:
            with folder.claim(each) as mine:
                if mine:
                    work = folder.path / 'groups' / each.name
                    train_group(each, work, folder.runs, prune, tell)
                    folder.write_results()
        left = [each for each in left if wait and not folder.over(each.names)]
        if left:
            time.sleep(1.0)
