"""Two processes that run in turns, so that both meet the same load; standard library only.

A worker keeps its compiled step and its arrays, reads a number n from standard input, takes n steps
and answers with one line of JSON. It runs under any Python: `benchmarks.torch_step_time` needs one
with torch, but not the dependencies of this project.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Worker:
    """A process that takes steps when asked.

    Example:
        with Worker([python, '-m', 'benchmarks.jax_step_time', json.dumps(task)]) as worker:
            print(worker.first, worker.steps(3)['ms'])
    """

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.first = self._answer()

    def steps(self, count: int) -> dict[str, Any]:
        """Takes `count` steps.

        Returns `{"ms": [wall time of each], "cpu_ms": [time of all threads of each], "loss": of the
        last, "peak_rss_mib": so far, "trainable": parameters}`.
        """
        assert self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{'):
                return json.loads(line)
        self._process.communicate()
        args, status = self._process.args, self._process.returncode
        raise RuntimeError(
            f'{args} ended with status {status} before it answered; see its own message above'
        )

    def __enter__(self) -> 'Worker':
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()  # Closes its input, which ends it, and its output.


def use_cores(count: int) -> None:
    """Lets this process and its threads run on `count` cores; call it before loading libraries."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def serve(step: Callable[[], float], trainable: int, warm_up: int) -> None:
    """Warms up, then answers standard input until it closes. `step` waits, and returns its loss."""
    _answer(step, warm_up, trainable)
    for line in sys.stdin:
        _answer(step, int(line), trainable)


def _answer(step: Callable[[], float], count: int, trainable: int) -> None:
    walls, processor, loss = [], [], float('nan')
    for _ in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        walls.append(1e3 * (time.perf_counter() - wall))
        processor.append(1e3 * (time.process_time() - cpu))
    answer = {'ms': walls, 'cpu_ms': processor, 'loss': loss, 'trainable': trainable}
    answer['peak_rss_mib'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps(answer), flush=True)
