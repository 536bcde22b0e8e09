"""What the package, its documents and the workflows say of each other holds."""

import configparser
import datetime
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import peftjax
from docs._ext import catalogue
from peftjax import testing
from peftjax.train.metrics.registry import METRICS
from peftjax.train.tasks.registry import TASKS
from tests.test_imports import LIBRARY, ROOT, imported_roots, libraries_by_name, root_of

PAGES = [*ROOT.glob('*.md'), *ROOT.glob('*/*.md')]
_LINK = re.compile(r'\]\(([^)\s]+)\)')
HOME = 'https://github.com/peftjax/peftjax/'


def _setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    return config


def _workflow(path: Path) -> dict:
    # YAML 1.1 reads the key `on` as true.
    return {
        'on' if key is True else key: value
        for key, value in yaml.safe_load(path.read_text()).items()
    }


WORKFLOWS = {path.stem: _workflow(path) for path in (ROOT / '.github' / 'workflows').glob('*.yml')}


def _commands(workflow: dict) -> list[str]:
    return [
        step['run']
        for job in workflow['jobs'].values()
        for step in job.get('steps', [])
        if 'run' in step
    ]


def test_the_package_and_the_changelog_name_one_version():
    headings = re.findall('^## (.*)$', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    assert headings[0] == 'Unreleased'
    newest = re.fullmatch(r'(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)', headings[1])
    assert newest is not None and newest[1] == peftjax.__version__
    datetime.date.fromisoformat(newest[2])
    assert _setup()['metadata']['version'] == 'attr: peftjax.__version__'


def test_every_page_that_is_linked_is_there():
    for page in PAGES:
        for target in _LINK.findall(page.read_text()):
            path = re.sub(f'^{HOME}(blob|tree)/main/', '/', target).partition('#')[0]
            if path and '://' not in path:
                place = ROOT / path[1:] if path.startswith('/') else page.parent / path
                assert place.exists() or _is_built(place), f'{page.name} links {target}'


def _is_built(place: Path) -> bool:
    """Whether the build of the site writes this page: about a public name, or of a folder."""
    pages = {ROOT / 'docs' / f'{each.page}.md' for each in catalogue.public_names()}
    folders = {page.parent for page in pages} | {ROOT / 'docs' / 'notebooks'}
    return place in pages | {folder / 'index.md' for folder in folders}


def test_the_links_of_the_long_description_are_absolute():
    assert _setup()['metadata']['long_description'] == 'file: README.md'
    links = _LINK.findall((ROOT / 'README.md').read_text())
    assert links and all(link.startswith('https://') for link in links)


def test_extras_name_only_what_the_wheel_uses():
    config = _setup()
    # XLA asks cuDNN for plans of fused attention when it compiles for a GPU.
    # Config files that `--config` reads are written with ml_collections.
    used = imported_roots(LIBRARY) | libraries_by_name()
    # MLflow reads its local store through SQLAlchemy.
    used |= {'nvidia-cudnn-cu12', 'ml_collections', 'sqlalchemy', 'alembic'}
    for extra, requirements in config['options.extras_require'].items():
        for line in requirements.split('\n')[1:]:
            if not line.startswith('#'):
                assert root_of(line) in used, f'{extra} installs {line}'


def _python(page: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)


def test_the_method_that_contributors_are_shown_keeps_the_contract():
    names: dict = {}
    exec(_python('CONTRIBUTING.md')[0], names)

    def make(targets):
        return names['scaled'](targets=targets, strength=2.0)

    inputs = {'x': jnp.linspace(0.0, 1.0, 64).reshape(16, 4)}
    case = testing.Case(make, r'.*', testing.tiny_mlp(), inputs, r'hidden', parameters=8 + 3)
    testing.check(case)


def test_fit_learns_as_the_page_of_training_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(_python('docs/training.md')[0], names)
    assert names['done'].result['test/accuracy'] > 0.8 and names['logits'].shape == (2, 3)
    model, folder = names['model'], tmp_path / 'runs/mine'
    restored = peftjax.restore(folder / 'adapter', model)
    best = jax.tree.leaves(names['done'].best_adapter)
    for one, other in zip(jax.tree.leaves(restored.adapter), best, strict=True):
        np.testing.assert_array_equal(one, other)
    page = (ROOT / 'docs/training.md').read_text().partition('## What a run leaves')[2]
    table = page.partition('\n## ')[0]
    written = set(re.findall(r'^\| `([^`]+?)/?` \|', table, re.MULTILINE))
    there = {path.name for path in folder.iterdir()}
    assert written - there == {'adapter_peft'}  # the model is of no family


def test_the_page_of_training_names_every_task_and_metric():
    page = (ROOT / 'docs/training.md').read_text()
    named = set(re.findall(r'`(\w+)`', page))
    assert set(TASKS) | set(METRICS) <= named


def test_runs_are_vectorised_as_the_page_of_sweeps_shows():
    names: dict = {}
    (shown,) = [block for block in _python('docs/sweeps.md') if 'peftjax.train.stack' in block]
    exec(shown, names)
    for run, (state, frozen) in enumerate(names['starts']):
        numbers = jax.tree.map(lambda each, run=run: each[run], names['numbers'])
        alone, _ = names['step'](numbers, state, frozen, names['batch'])
        mine = peftjax.train.unstack(names['states'], run, like=state)
        for found, expected in zip(
            jax.tree.leaves(mine.adapter), jax.tree.leaves(alone.adapter), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    shapes = [jax.tree.map(jnp.shape, each) for each in (names['mine'], names['starts'][2][0])]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('page', ['README.md', 'docs/sweeps.md', 'peftjax/train/optional.py'])
def test_groups_that_are_named_are_there(page):
    groups = tomllib.loads((ROOT / 'pyproject.toml').read_text())['dependency-groups']
    named = re.findall(r'--group (\w[\w-]*)', (ROOT / page).read_text())
    assert set(named) <= set(groups)
    extras = set(_setup()['options.extras_require'])
    named = re.findall(r'peftjax\[(\w[\w-]*)\]', (ROOT / page).read_text())
    assert set(named) <= extras


def test_a_scheduled_workflow_runs_every_slow_test():
    slow = WORKFLOWS['slow']
    assert slow['on']['schedule'] and 'nox --session slow' in _commands(slow)
    assert 'workflow_call' in slow['on']
    assert 'slow' in WORKFLOWS['release']['jobs']['publish']['needs']
    session = (ROOT / 'noxfile.py').read_text().partition('def slow(')[2].partition('\n\n\n')[0]
    # Every test with the mark, with the library and the browser that some of them ask for.
    assert "session.run(*PYTEST, '-m', 'slow', *session.posargs)" in session
    assert 'search,ray]' in session
    assert 'google-chrome --version' in _commands(slow)


def test_a_scheduled_workflow_runs_the_page_about_models_of_your_own():
    assert 'nox --session own_models' in _commands(WORKFLOWS['slow'])
    session = (ROOT / 'noxfile.py').read_text().partition('def own_models(')[2]
    session = session.partition('\n\n\n')[0]
    assert "'--group', 'own-models'" in session
    assert "'-m', 'slow', 'tests/test_own_models.py'" in session


def test_workflows_run_sessions_that_there_are():
    sessions = set(
        re.findall(r'^def ([a-z]\w*)\(session', (ROOT / 'noxfile.py').read_text(), re.MULTILINE)
    )
    matrices = [
        job['strategy']['matrix']
        for w in WORKFLOWS.values()
        for job in w['jobs'].values()
        if 'strategy' in job
    ]
    named = {each for matrix in matrices for each in matrix.get('session', [])}
    named |= {row['session'] for matrix in matrices for row in matrix.get('include', [])}
    named |= set(
        re.findall(
            r'nox --session ([\w.-]+)',
            '\n'.join(c for w in WORKFLOWS.values() for c in _commands(w)),
        )
    )
    script = (ROOT / '.ci' / 'run').read_text()
    for sessions_of_ci in re.findall(r'--session (.*)', script):
        named |= set(sessions_of_ci.split())
    assert len(named) >= 6 and {name.partition('-')[0] for name in named} <= sessions
    assert {'newest-3.12', 'newest-3.13', 'oldest', 'wheel', 'nightly', 'slow'} <= named
    assert 'deviceless' in script.split() and 'deviceless' in named
