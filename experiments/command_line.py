"""Flags of the programs here, and errors in them as plain messages."""

import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment.', lock_config=True)
flags.mark_flag_as_required('config')
# Required by the programs that write one.
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for checkpoints, metrics and results.')


def read_flags(argv: Sequence[str]) -> list[str]:
    """Reads the command line; a wrong flag or config key ends the program with a plain message."""
    try:
        left = flags.FLAGS(list(argv))
        # A config file that is not there is an error only when its value is used.
        CONFIG.value.lock()
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        sys.exit(
            f'{_plain(error)}\nRun with --help for the flags; see the config file for its keys.'
        )
    return left


def _plain(error: Exception) -> str:
    text = str(error)
    if isinstance(error, AttributeError | KeyError):
        # These arrive as the repr of a repr.
        text = 'no such config key: ' + re.sub(r'(\\+n|\\|\')+', ' ', text).strip('" ')
    # An error inside a config file arrives as the text of a traceback; its last line says it.
    return text.strip().splitlines()[-1] if 'Traceback' in text else text
