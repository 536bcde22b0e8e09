"""Kills saves, fills their disks, and lets two writers and a reader share a folder.

    python -m benchmarks.save_faults --saves 1000 --kills 30 --disks 20

The writers are `save`, `save_adapter`, `save_checkpoint` and `export_gguf`. Saves: two processes
save, each with its own number in every array, while a third reads; a read that finds two numbers is
mixed. Kills: a process that saves again and again is killed with SIGKILL at a random moment; it
must leave one whole save. Disks: a save may write only a random number of bytes to each file, as on
a full disk; it must end with an error, and leave the bytes of the older save.
"""

import argparse
import multiprocessing
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import peftjax
from tests import tiny_runs

TARGETS = r'layers_\d+/self_attn/(q|v)_proj'
_CONTEXT = multiprocessing.get_context('spawn')


class Saves:
    """Each writer on a tiny Llama, and its reader."""

    def __init__(self, base: pathlib.Path):
        self._base = base
        self.model = peftjax.load(base, scan=False)
        self._transform = peftjax.lora(rank=2, targets=TARGETS)
        self._start = self._transform.init(jax.random.key(0), self.model)
        self.writers: dict[str, Callable[[pathlib.Path, int], None]] = {
            'save': self._save,
            'save_adapter': self._save_adapter,
            'save_checkpoint': self._save_checkpoint,
            'export_gguf': self._export,
        }
        self.readers: dict[str, Callable[[pathlib.Path], Any]] = {
            'save': lambda folder: peftjax.restore(folder, self.model).adapter,
            'save_adapter': lambda folder: peftjax.load_adapter(folder, self.model).adapter,
            'save_checkpoint': lambda folder: peftjax.load(folder, scan=False).params,
        }

    def _adapter(self, number: int) -> Any:
        return jax.tree.map(lambda leaf: leaf * 0 + number, self._start[0])

    def _save(self, folder: pathlib.Path, number: int) -> None:
        frozen = self._start[1]
        peftjax.save(folder, self.model, self._transform, self._adapter(number), frozen)

    def _save_adapter(self, folder: pathlib.Path, number: int) -> None:
        peftjax.save_adapter(folder, self.model, self._transform, self._adapter(number))

    def _save_checkpoint(self, folder: pathlib.Path, number: int) -> None:
        params = jax.tree.map(lambda leaf: leaf * 0 + number, self.model.params)
        peftjax.save_checkpoint(folder, self.model, params, self._base)

    def _export(self, folder: pathlib.Path, number: int) -> None:
        adapter = self._adapter(number)
        peftjax.export_gguf(folder / 'x.gguf', self.model, self._transform, adapter)

    def number(self, name: str, folder: pathlib.Path) -> int | None:
        """The number in the arrays of a folder; None if there are several."""
        leaves = jax.tree.leaves(self.readers[name](folder))
        found = {int(each) for leaf in leaves for each in np.unique(leaf)}
        return found.pop() if len(found) == 1 else None


def _write(base: pathlib.Path, name: str, folder: pathlib.Path, numbers: range) -> None:
    saves = Saves(base)
    for number in numbers:
        saves.writers[name](folder, number)


def two_writers(base: pathlib.Path, folder: pathlib.Path, name: str, count: int) -> tuple[int, ...]:
    """Reads, mixed reads and failures while two processes save `count` times together."""
    saves, target = Saves(base), folder / f'both_{name}'
    saves.writers[name](target, 0)
    halves = range(1, count // 2 + 1), range(count // 2 + 1, count + 1)
    writers = [_CONTEXT.Process(target=_write, args=(base, name, target, half)) for half in halves]
    for each in writers:
        each.start()
    reads = mixed = failures = 0
    while any(each.is_alive() for each in writers):
        reads += 1
        try:
            mixed += saves.number(name, target) is None
        except (OSError, ValueError) as error:
            print(f'{name}: {error}', flush=True)
            failures += 1
    for each in writers:
        each.join()
        failures += each.exitcode != 0
    return reads, mixed, failures


def kill(base: pathlib.Path, folder: pathlib.Path, name: str, seed: int) -> bool:
    """Whether a killed process left one whole save."""
    saves, target = Saves(base), folder / f'kill_{seed}'
    saves.writers[name](target, 0)
    process = _CONTEXT.Process(target=_write, args=(base, name, target, range(1, 10**6)))
    process.start()
    while saves.number(name, target) == 0 and process.is_alive():
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0.0, 0.3))
    process.kill()
    process.join()
    return saves.number(name, target) is not None


def full_disk(saves: Saves, folder: pathlib.Path, name: str, seed: int) -> bool:
    """Whether a save on a full disk ended with an error and left the older save unchanged."""
    target = folder / f'disk_{seed}'
    target.mkdir()
    saves.writers[name](target, 0)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    room = random.Random(seed).randrange(max(map(len, before.values())))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        saves.writers[name](target, 1)
    except OSError:
        refused = True
    else:
        refused = False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    after = {path.name: path.read_bytes() for path in target.iterdir()}
    litter = [path for path in folder.iterdir() if path.name.startswith('.disk')]
    return refused and before == after and not litter


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--saves', type=int, default=1000)
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--disks', type=int, default=20)
    given = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        base = tiny_runs.checkpoint(folder / 'base', 'tiny_llama')
        saves = Saves(base)
        names = list(saves.readers)
        for name in names:
            count = given.saves // len(names)
            reads, mixed, failures = two_writers(base, folder, name, count)
            print(
                f'{name}: {count} saves by two, {reads} reads, {mixed} mixed, {failures} failures'
            )
            wrong += mixed + failures
        whole = sum(kill(base, folder, names[n % len(names)], n) for n in range(given.kills))
        print(f'killed in saves: tried {given.kills}, whole {whole}')
        writers = list(saves.writers)
        kept = sum(full_disk(saves, folder, writers[n % 4], n) for n in range(given.disks))
        print(f'full disks: tried {given.disks}, refused and the older save kept {kept}')
        wrong += given.kills - whole + given.disks - kept
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
