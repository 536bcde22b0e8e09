"""`peftjax sweep`: many runs on one base, and the page about them."""

import argparse
from pathlib import Path

from peftjax.cli.config_files import ConfigFile, read_config
from peftjax.cli.parser import Parser, UsageError, add_config, number, settings_of, whole
from peftjax.sweep.asynchronous import AsynchronousHalving
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.modules import load_module
from peftjax.sweep.on_ray import OnRay
from peftjax.sweep.pruning import Halving, Prune, either
from peftjax.sweep.rows import expand
from peftjax.sweep.run import Sweep, default_score
from peftjax.sweep.search import SAMPLERS, Search
from peftjax.sweep.work import here
from peftjax.train.compilation_cache import keep_compiled_programs
from peftjax.train.endings import plain_endings
from peftjax.train.progress import quiet_libraries, terminal


def add_arguments(parser: Parser) -> None:
    add_config(parser)
    parser.add_argument('--workdir', metavar='DIR', help='the folder of the sweep')
    rows = parser.add_argument_group('which runs')
    rows.add_argument('--sweep', metavar='NAME', help='the runs that sweep_NAME(add) in FILE adds')
    rows.add_argument('--search', metavar='NAME', help='the runs that search_NAME(trial) draws')
    rows.add_argument(
        '--trials', type=whole(1), default=16, metavar='N', help='the runs of a search (16)'
    )
    rows.add_argument(
        '--wave', type=whole(1), default=8, metavar='N', help='draws of a search at a time (8)'
    )
    rows.add_argument(
        '--sampler',
        choices=SAMPLERS,
        default=SAMPLERS[0],
        help=f'what draws the runs of a search ({SAMPLERS[0]})',
    )
    rows.add_argument(
        '--search-seed', type=whole(0), default=0, metavar='N', help='the seed of the sampler (0)'
    )
    ends = parser.add_argument_group('how runs are compared, and which stop early')
    ends.add_argument(
        '--score',
        metavar='NAME',
        help='a score of the validation split, with a minus sign if lower is better; the default '
        'is the score that chooses the best checkpoint',
    )
    ends.add_argument(
        '--halving', type=whole(2), metavar='N', help='at a rung, one run in N of a group goes on'
    )
    ends.add_argument('--asynchronous', action='store_true', help='--halving across all groups')
    ends.add_argument(
        '--median', action='store_true', help='in a search, stop runs below the median'
    )
    where = parser.add_argument_group('where they run')
    where.add_argument(
        '--together',
        type=whole(1),
        default=32,
        metavar='N',
        help='the most runs in one program (32)',
    )
    where.add_argument(
        '--memory-gib',
        type=number(0),
        metavar='X',
        help='the memory of a program; the default suits this machine',
    )
    where.add_argument('--ray', metavar='ADDRESS', help="the address of a Ray cluster, or 'local'")
    where.add_argument(
        '--ray-cpus', type=number(0), default=1.0, metavar='X', help='the cores of a task (1)'
    )
    where.add_argument(
        '--ray-gpus', type=number(0), default=0.0, metavar='X', help='the GPUs of a task (0)'
    )
    parser.add_settings('model', 'data', 'run', 'mesh', sections=True, chained=True)


def run(arguments: argparse.Namespace) -> None:
    """Trains the unfinished runs of a sweep, and writes its page.

    Raises:
        UsageError: a flag is missing, or flags exclude each other.
        SystemExit: with 1, after a failed sweep.
    """
    for name in ('config', 'workdir'):
        if getattr(arguments, name) is None:
            raise UsageError(f'--{name} is missing; peftjax sweep --help has an example')
    if (arguments.sweep is None) == (arguments.search is None):
        raise UsageError('give either --sweep NAME or --search NAME')
    if arguments.asynchronous and arguments.halving is None:
        raise UsageError('--asynchronous is a kind of --halving: give --halving 2 too')
    quiet_libraries()
    keep_compiled_programs()
    name = arguments.sweep or arguments.search
    memory, ray = arguments.memory_gib, arguments.ray
    sweep = Sweep(
        folder=SweepFolder(Path(arguments.workdir)),
        console=terminal(),
        config=ConfigFile.of(arguments.config).path,
        name=name,
        most=arguments.together,
        memory=None if memory is None else memory * 2**30,
        work=here if ray is None else OnRay(ray, arguments.ray_cpus, arguments.ray_gpus),
    )
    settings = settings_of(arguments, read_config(arguments.config))
    module = load_module(sweep.config)
    with plain_endings():
        score = arguments.score or default_score(sweep.folder, settings)
        sweep, halving = sweep._replace(score=score), _halving(arguments, sweep.folder, score)
        if arguments.sweep:
            rows = expand(module, name, settings)
            sweep.run(rows, either(halving))
        else:
            search = Search(module, name, settings, arguments.sampler, score, arguments.search_seed)
            median = [search.below_median(sweep.folder)] if arguments.median else []
            rows = search.run(sweep, arguments.trials, arguments.wave, either([*halving, *median]))
        sweep.finish(rows)


def _halving(arguments: argparse.Namespace, folder: SweepFolder, score: str) -> list[Prune]:
    if arguments.halving is None:
        return []
    if arguments.asynchronous:
        return [AsynchronousHalving(arguments.halving, score, folder)]
    return [Halving(arguments.halving, score)]
