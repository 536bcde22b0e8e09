"""Fine-tunes an adapter: python -m experiments.main --config configs/lora_sentiment.py --workdir d

Single fields are changed by flag, `--config.lr=1e-3`; the config's own variants by the string after
a colon, `--config configs/lora_sentiment.py:full`. A work folder that holds an interrupted run is
gone on with.

Of several processes, each runs this with --distributed, or with --coordinator, --processes and
--process where nothing around them tells.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from experiments.command_line import CONFIG, WORKDIR, read_flags
from peftjax.train.compilation_cache import keep_compiled_programs
from peftjax.train.endings import plain_endings
from peftjax.train.fitting import train
from peftjax.train.progress import terminal
from peftjax.train.settings import read_settings

flags.mark_flag_as_required('workdir')
_PROFILE = flags.DEFINE_bool(
    'profile', False, 'Write a trace of three steps to <workdir>/profile, for TensorBoard.'
)
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'One of several processes, as SLURM or a TPU pod tells them.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'Of several processes, where the first listens: host:port.'
)
_PROCESSES = flags.DEFINE_integer('processes', None, 'How many processes there are.')
_PROCESS = flags.DEFINE_integer('process', None, 'Which of them this is, from 0 on.')


def main(argv: Sequence[str]) -> None:
    # Orbax reports every step of every save over the progress bar, and an error twice.
    logging.set_verbosity(logging.FATAL)
    keep_compiled_programs()
    if len(argv) > 1:
        sys.exit(f'unexpected argument {argv[1]!r}; settings are flags: --config.name=value')
    with plain_endings(ValueError):
        if _DISTRIBUTED.value or _COORDINATOR.value:
            # On CPUs programs that wait for each other must start in the same order everywhere.
            jax.config.update('jax_cpu_enable_async_dispatch', False)
            jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        console = terminal(quiet=jax.process_index() != 0)
        train(
            read_settings(CONFIG.value), Path(str(WORKDIR.value)), console, profile=_PROFILE.value
        )


if __name__ == '__main__':
    app.run(main, flags_parser=read_flags)
