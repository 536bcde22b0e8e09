"""Settings of every test: eight fake devices, shapes checked, names for the docstring examples."""

import atexit
import gc
import os
import tempfile
import zlib

import jaxlib.version

# Before JAX starts: the contract's sharding law runs on a mesh of eight.
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8'
    # Tests compile much and compute little. Unoptimised machine code saves 40 % of their time, the
    # older way to emit fused loops half of the rest, and one part a program a tenth more.
    + ' --xla_backend_optimization_level=0'
    + ' --xla_cpu_parallel_codegen_split_count=1'
)
# The older way is gone from jaxlib 0.11 on, where an unknown flag ends the process without a word.
if jaxlib.version.__version_info__ < (0, 11):
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'

# The library must not lean on a promotion that it did not write: at `int32 * bfloat16`, or at
# `[T, D] + [D]`, a number can silently take another type or go along another axis. Set in the
# environment, so that the programs that tests start are held to it too.
os.environ['JAX_NUMPY_DTYPE_PROMOTION'] = 'strict'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'

# Programs of the tests are for the tests: none is left in a reader's cache, or comes from there.
os.environ['JAX_COMPILATION_CACHE_DIR'] = ''

# Before the library is imported: what it imports then checks the shapes of its arrays.
from tests import shape_checks

shape_checks.install()

import jax
import jax.numpy as jnp
import pytest

import peftjax

# Those of this process are kept while it lasts, as many tests ask for what an earlier one compiled.
# What tests start is without: a program that is killed may leave half a file.
_PROGRAMS = tempfile.TemporaryDirectory(prefix='peftjax-tests-')
atexit.register(_PROGRAMS.cleanup)
jax.config.update('jax_compilation_cache_dir', f'{_PROGRAMS.name}/own')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)

# JAX stores the source line of each operation for error messages of the compiler. No test reads
# them, and they took 4 % of the time.
jax.config.update('jax_traceback_in_locations_limit', 0)

# Traces make garbage by the million; looking for it as often as Python does took a seventh of the
# time of a test.
gc.freeze()
gc.set_threshold(50_000, 20, 100)

# Imported after the collector freezes: the oldest hypothesis that is supported asks the collector
# which objects refer to its random state, and the collector reports no frozen ones. Loaded before
# any test module, because `settings` of a test inherit from the profile at import.
import hypothesis

hypothesis.settings.register_profile(
    'peftjax',
    deadline=None,  # Compiling takes as long as it takes.
    derandomize=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.filter_too_much,
    ],
)
hypothesis.settings.load_profile('peftjax')


@pytest.fixture(autouse=True)
def _names_for_examples(doctest_namespace):
    doctest_namespace.update(jax=jax, jnp=jnp, peftjax=peftjax)


@pytest.hookimpl(tryfirst=True)  # Before `-m` chooses.
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a table that is marked `sampled`, a quarter of the cases run by default.

    The others are slow tests. Which cases run follows from their names, so a new one changes at
    most one of them. Cases that are asked for, by `-k`, by `--lf` or by their full ids, are left
    alone.
    """
    if config.option.keyword or getattr(config.option, 'lf', False):
        return
    tables: dict[str, list[pytest.Item]] = {}
    for item in items:
        asked = any(argument.endswith(item.nodeid) for argument in config.args)
        if item.get_closest_marker('sampled') and not item.get_closest_marker('slow') and not asked:
            tables.setdefault(item.nodeid.partition('[')[0], []).append(item)
    for cases in tables.values():
        cases.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        for case in cases[-(-len(cases) // 4) :]:
            case.add_marker(pytest.mark.slow)
