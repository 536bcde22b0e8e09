"""`peftjax train`: trains a method, from flags, from a config, or from both."""

import argparse
import json
from pathlib import Path

import jax

from peftjax.cli.config_files import read_config
from peftjax.cli.parser import Parser, UsageError, add_config, settings_of, whole
from peftjax.train.compilation_cache import keep_compiled_programs
from peftjax.train.endings import plain_endings
from peftjax.train.fitting import train
from peftjax.train.progress import quiet_libraries, terminal
from peftjax.train.settings import Settings, SettingsError

_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def add_arguments(parser: Parser) -> None:
    add_config(parser)
    parser.add_argument(
        '--workdir',
        metavar='DIR',
        help='the folder of the run; if it holds a stopped run, that run goes on',
    )
    parser.add_argument(
        '--show', action='store_true', help='print all settings as JSON and train nothing'
    )
    parser.add_argument(
        '--profile', action='store_true', help='write a trace of three steps for TensorBoard'
    )
    parser.add_argument(
        '--allow-changed-data',
        action='store_true',
        help='resume even if rows, tokenizer or chat template have changed',
    )
    several = parser.add_argument_group('several processes, which all run the same command')
    several.add_argument(
        '--distributed', action='store_true', help='SLURM or a TPU pod numbers the processes'
    )
    several.add_argument(
        '--coordinator', metavar='HOST:PORT', help='where the first process listens'
    )
    several.add_argument('--processes', type=whole(1), metavar='N', help='how many there are')
    several.add_argument(
        '--process', type=whole(0), metavar='N', help='the number of this one, from 0'
    )
    parser.add_settings('model', 'data', 'run', 'mesh', sections=True, chained=True)


def run(arguments: argparse.Namespace) -> None:
    """Trains to the end; prints progress, the result, and the commands that use the adapter.

    Raises:
        SettingsError: settings are missing or do not fit together.
        UsageError: no work folder is given.
        SystemExit: with 1, after a failed run.
    """
    start = read_config(arguments.config) if arguments.config else Settings()
    settings = settings_of(arguments, start)
    if arguments.show:
        print(json.dumps(settings.to_dict(), indent=2))
        return
    if arguments.workdir is None:
        raise UsageError('no work folder is given; write for example --workdir runs/first')
    if not settings.model.source:
        raise SettingsError(
            'no base model is given; write for example --model.source FacebookAI/roberta-base'
        )
    quiet_libraries()
    keep_compiled_programs()
    with plain_endings():
        if arguments.distributed or arguments.coordinator:
            # On CPUs, every process must start programs with collectives in the same order.
            jax.config.update('jax_cpu_enable_async_dispatch', False)
            jax.distributed.initialize(
                arguments.coordinator, arguments.processes, arguments.process
            )
        console = terminal(quiet=jax.process_index() != 0)
        try:
            train(
                settings,
                Path(arguments.workdir),
                console,
                profile=arguments.profile,
                allow_changed_data=arguments.allow_changed_data,
            )
        except _NO_FILE as error:
            raise SettingsError(f'{error.filename}: {error.strerror}') from error
