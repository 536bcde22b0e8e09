"""Groups of a sweep as tasks on a Ray cluster: on this machine, or on many that share a folder."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.groups import Group, as_group, prepare
from peftjax.sweep.pruning import Prune
from peftjax.sweep.rows import SweepRun
from peftjax.sweep.work import here
from peftjax.train.compilation_cache import keep_compiled_programs
from peftjax.train.hooks import Tell
from peftjax.train.optional import library

_ROOT = Path(__file__).parents[2]


class OnRay(NamedTuple):
    """`Work` as one task for each group.

    If the node of a task dies, Ray starts the task again, and it continues from the group's
    checkpoint.

    Attributes:
        address: of a cluster; 'auto' for the cluster of this machine; 'local' to start one here for
          the time of the sweep. All nodes must see the folder and this code at the same paths.
        cpus, gpus: that a task takes.
    """

    address: str
    cpus: float = 1.0
    gpus: float = 0.0

    def __call__(
        self, groups: Sequence[Group], folder: SweepFolder, prune: Prune, tell: Tell, wait: bool
    ) -> None:
        """See `Work`.

        Raises:
            ValueError: Ray is not installed; no task fits the cluster.
        """
        ray = library('ray', 'ray', '--ray')
        begun = not ray.is_initialized()
        if begun:
            with warnings.catch_warnings():
                # Of a fork while JAX has threads: Ray's forks become other programs at once.
                warnings.simplefilter('ignore', RuntimeWarning)
                ray.init(
                    self.address,
                    runtime_env={'env_vars': {'PYTHONPATH': str(_ROOT)}},
                    log_to_driver=False,
                    logging_level='error',
                )
        try:
            self._fits(ray.cluster_resources())
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus)(_train)
            left = [
                task.remote([each.row for each in group.rows], group.name, folder.path, prune, wait)
                for group in groups
            ]
            while left:
                done, left = ray.wait(left, timeout=1.0)
                for row in (row for group in groups for row in group.names):
                    tell(row, folder.progress(row))
                try:
                    ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
            folder.write_results()
        finally:
            if begun:
                ray.shutdown()

    def _fits(self, there: dict[str, float]) -> None:
        for name, wanted in (('CPU', self.cpus), ('GPU', self.gpus)):
            has = there.get(name, 0.0)
            if wanted > has:
                raise ValueError(
                    f'a task takes {wanted:g} {name}, but the cluster has {has:g}: set '
                    f'--ray-{name.lower()}s'
                )


def _train(rows: Sequence[SweepRun], name: str, path: Path, prune: Prune, wait: bool) -> None:
    """A task: one group, built from its rows."""
    keep_compiled_programs()
    here([as_group(name, prepare(rows))], SweepFolder(path), prune, lambda *_: None, wait)
