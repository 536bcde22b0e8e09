"""Many runs on one base: python -m experiments.sweep --config configs/x.py --sweep rank --workdir d

The rows are what `sweep_<name>(add)` in the config file adds, on top of what flags change in the
config; or, with --search, what `search_<name>(trial)` makes of the draws of Optuna. Rows that
differ in numbers alone (rates, seeds, alphas, ranks) train together in one program. The same
command started again goes on with what is missing; started several times, each process takes groups
that nobody works on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.command_line import CONFIG, WORKDIR, read_flags
from peftjax.sweep.asynchronous import AsynchronousHalving
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.on_ray import OnRay
from peftjax.sweep.pruning import Halving, Prune, either
from peftjax.sweep.rows import expand, load_module
from peftjax.sweep.run import Sweep, default_score
from peftjax.sweep.search import SAMPLERS, Search
from peftjax.sweep.work import here
from peftjax.train.compilation_cache import keep_compiled_programs
from peftjax.train.endings import plain_endings
from peftjax.train.progress import terminal
from peftjax.train.settings import read_settings

flags.mark_flag_as_required('workdir')
_SWEEP = flags.DEFINE_string('sweep', None, 'sweep_<name> of the config file.')
_SEARCH = flags.DEFINE_string('search', None, 'search_<name> of the config file.')
flags.mark_flags_as_mutual_exclusive(['sweep', 'search'], required=True)
_MOST = flags.DEFINE_integer('together', 32, 'Rows in one program at most.', lower_bound=1)
_MEMORY = flags.DEFINE_float('memory_gib', None, 'For a program; unless given, what is here.')
_SCORE = flags.DEFINE_string(
    'score',
    None,
    'What runs are compared by: a score of the validation split. -name: the least is the best. '
    'Unless given, what chooses the best checkpoint.',
)
_HALVING = flags.DEFINE_integer(
    'halving', None, 'Of each group, one run in so many goes on at each rung.', lower_bound=2
)
_ASYNCHRONOUS = flags.DEFINE_bool(
    'asynchronous', False, '--halving of all groups together: with those that came so far.'
)
_TRIALS = flags.DEFINE_integer('trials', 16, 'Draws of a search.', lower_bound=1)
_WAVE = flags.DEFINE_integer('wave', 8, 'Draws of a search at a time.', lower_bound=1)
_SAMPLER = flags.DEFINE_enum('sampler', SAMPLERS[0], SAMPLERS, 'What draws the rows of a search.')
_MEDIAN = flags.DEFINE_bool('median', False, 'Stop rows of a search below the median so far.')
_SEED = flags.DEFINE_integer('search_seed', 0, 'Of the sampler.')
_RAY = flags.DEFINE_string('ray', None, "Groups as tasks of a Ray cluster: 'local' or its address.")
_CPUS = flags.DEFINE_float('ray_cpus', 1.0, 'Cores of a task.')
_GPUS = flags.DEFINE_float('ray_gpus', 0.0, 'GPUs of a task.')


def main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.FATAL)
    keep_compiled_programs()
    if len(argv) > 1:
        sys.exit(f'unexpected argument {argv[1]!r}; settings are flags: --config.name=value')
    # The part behind a colon is the config's own argument.
    path = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
    name = str(_SWEEP.value or _SEARCH.value)
    sweep = Sweep(
        folder=SweepFolder(Path(str(WORKDIR.value))),
        console=terminal(),
        config=path,
        name=name,
        most=_MOST.value,
        memory=None if _MEMORY.value is None else _MEMORY.value * 2**30,
        work=here if _RAY.value is None else OnRay(_RAY.value, _CPUS.value, _GPUS.value),
    )
    with plain_endings(ValueError):
        module, settings = load_module(path), read_settings(CONFIG.value)
        score = _SCORE.value or default_score(sweep.folder, settings)
        sweep, halving = sweep._replace(score=score), _halving(sweep.folder, score)
        if _SWEEP.value:
            rows = expand(module, name, settings)
            sweep.run(rows, either(halving))
        else:
            search = Search(module, name, settings, _SAMPLER.value, score, _SEED.value)
            pruned = [*halving, *([search.below_median(sweep.folder)] if _MEDIAN.value else [])]
            rows = search.run(sweep, _TRIALS.value, _WAVE.value, either(pruned))
        sweep.finish(rows)


def _halving(folder: SweepFolder, score: str) -> list[Prune]:
    if _HALVING.value is None:
        if _ASYNCHRONOUS.value:
            sys.exit('--asynchronous is a kind of --halving: give --halving=2 too')
        return []
    if _ASYNCHRONOUS.value:
        return [AsynchronousHalving(_HALVING.value, score, folder)]
    return [Halving(_HALVING.value, score)]


if __name__ == '__main__':
    app.run(main, flags_parser=read_flags)
