"""Fine-tunes an adapter: python -m experiments.main --config configs/lora_sentiment.py --workdir d

Single fields are changed by flag, `--config.lr=1e-3`; the config's own variants by the string after
a colon, `--config configs/lora_sentiment.py:full`. A work folder that holds an interrupted run is
gone on with.
"""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from experiments.checkpoints import CheckpointsError
from experiments.command_line import read_flags
from experiments.compiled import keep_compiled_programs
from experiments.interrupt import Interrupted
from experiments.train import train
from experiments.window import NonFiniteError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for checkpoints, metrics and results.', required=True
)
_PROFILE = flags.DEFINE_bool(
    'profile', False, 'Write a trace of three steps to <workdir>/profile, for TensorBoard.'
)
flags.mark_flag_as_required('config')


def main(argv: Sequence[str]) -> None:
    # Orbax reports every step of every save over the progress bar, and an error twice.
    logging.set_verbosity(logging.FATAL)
    keep_compiled_programs()
    if len(argv) > 1:
        sys.exit(f'unexpected argument {argv[1]!r}; settings are flags: --config.name=value')
    try:
        train(_CONFIG.value, Path(_WORKDIR.value), Console(), profile=_PROFILE.value)
        return
    except Interrupted as at:
        print(f'stopped after {at}, as asked; the same command goes on from there')
        return
    except (NonFiniteError, CheckpointsError, OSError) as error:
        reason = str(error)
    # What a failed save leaves unfinished goes now: at the end of the program it would complain.
    gc.collect()
    sys.exit(f'stopped: {reason}')


if __name__ == '__main__':
    app.run(main, flags_parser=lambda argv: read_flags(argv, _CONFIG))
