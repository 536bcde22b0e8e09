"""Every block of Python in README and on the pages runs, offline."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
from docs._ext import catalogue
from tests import tiny_runs
from tests.checkpoint_files import SMOLLM2, require_package
from tests.test_imports import ROOT

# Pages that tests of their own run, since they look at what comes out.
ELSEWHERE = {
    'CONTRIBUTING.md': 'tests/test_documents.py',
    'docs/training.md': 'tests/test_documents.py',
    'docs/sweeps.md': 'tests/test_documents.py',
    'docs/own_model.md': 'tests/test_own_models.py',
    'docs/serving.md': 'tests/test_serving_page.py',
    'docs/merging.md': 'tests/test_merging_page.py',
}


def blocks(page: str) -> list[str]:
    """The blocks of Python of a page, in their order."""
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)


def _shown() -> list[str]:
    pages = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
    return [name for page in pages if blocks(name := str(page.relative_to(ROOT)))]


HERE = [page for page in _shown() if page not in ELSEWHERE]


@pytest.fixture
def _tiny(tmp_path, monkeypatch):
    """Names of the hub stand for a tiny Llama, a GGUF file for the one that is installed."""
    real, llama = peftjax.load, tiny_runs.checkpoint(tmp_path / 'llama', 'tiny_llama')
    bert = tiny_runs.checkpoint(tmp_path / 'bert', 'tiny_bert')

    def load(source, **arguments):
        if source.startswith('package:'):
            return real(require_package(source), **arguments)
        if source.endswith('.gguf'):
            return real(require_package(SMOLLM2), abstract=True, **arguments)
        return real(bert if source == 'org/bert' else llama, **arguments)

    monkeypatch.setattr(peftjax, 'load', load)
    monkeypatch.chdir(tmp_path)
    # A reader's own code may promote types; the library is held to strict promotion elsewhere.
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        yield


def _names(page: str) -> dict:
    """What a page takes as given: a training run that the reader has."""
    if page not in ('docs/scaling.md', 'docs/design.md', 'docs/models.md'):
        return {}
    ids = np.ones((8, 4), np.int32)
    batch = {'input_ids': ids, 'attention_mask': ids}

    def loss(adapter, frozen, batch, key):
        del frozen, batch, key
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(adapter)), {}

    return {
        'jax': jax, 'jnp': jnp, 'peftjax': peftjax, 'key': jax.random.key(0), 'loss': loss,
        'batches': [batch], 'batch': batch, 'optimizer': optax.adam(1e-3),
        'tx': peftjax.lora(rank=2, targets=r'.*/[qv]_proj'),
        'model': peftjax.load('org/bert', task='classification', num_labels=2),
        'init_state': peftjax.train.init_state, 'make_train_step': peftjax.train.make_train_step,
    }  # fmt: skip


@pytest.mark.parametrize('page', HERE)
def test_its_python_runs(page, _tiny):
    names = {'__name__': 'page', **_names(page)}
    for block in blocks(page):
        exec(compile(block, page, 'exec'), names)


def test_pages_that_run_elsewhere_are_read_there():
    for page, test in ELSEWHERE.items():
        assert blocks(page) and page.removeprefix('docs/') in (ROOT / test).read_text()


def test_start_here_learns_and_prints_what_it_shows(_tiny, capsys):
    names: dict = {}
    page = (ROOT / 'docs/start.md').read_text()
    shown = 0
    for code, output in re.findall(
        r'```python\n(.*?)```(?:\n\n(?:It prints [^`]*)?```text\n(.*?)```)?', page, re.DOTALL
    ):
        exec(code, names)
        printed = capsys.readouterr().out
        assert bool(output) == bool(printed), code
        rest = printed
        for number, part in enumerate(filter(None, output.split('...\n'))):
            rest = _behind(part, rest, first=number == 0)
            shown += 1
        assert '...' in output or not rest
    assert shown >= 7
    assert names['value'] < 0.1
    assert jnp.argmax(names['logits'], axis=-1).tolist() == [1, 0]
    np.testing.assert_array_equal(
        names['again'], names['predict'](names['adapter'], names['frozen'], **names['batch'])
    )
    assert names['tx'].about.name == 'chain'
    merged = names['plain'] - names['predict'](names['adapter'], names['frozen'], **names['batch'])
    assert jnp.abs(merged).max() < 1e-5


def _behind(shown: str, printed: str, *, first: bool) -> str:
    """What is printed behind the lines that a page shows.

    shown: losses and probabilities may differ by 0.02, and other numbers not at all.
    first: whether these lines must be the first ones.
    """
    near = 0.0 if 'trainable' in shown else 0.02
    lines, wanted = printed.splitlines(keepends=True), shown.splitlines()
    number = r'\d+\.\d+(?:e-?\d+)?'
    for start in range(1 if first else len(lines) - len(wanted) + 1):
        found = [line.rstrip('\n') for line in lines[start : start + len(wanted)]]
        texts = [re.sub(number, '#', '\n'.join(each)).split() for each in (wanted, found)]
        values = [re.findall(number, '\n'.join(each)) for each in (wanted, found)]
        if texts[0] == texts[1] and all(
            abs(float(one) - float(other)) <= near for one, other in zip(*values, strict=True)
        ):
            return ''.join(lines[start + len(wanted) :])
    raise AssertionError(f'the page shows\n{shown}\nand this is printed:\n{printed}')


def test_the_code_of_readme_is_short():
    (code,) = blocks('README.md')
    lines = [line for line in code.splitlines() if line and not line.startswith(('import', 'from'))]
    assert len(lines) <= 12


def test_readme_counts_the_methods():
    (count,) = re.findall(r'It has (\d+) methods', (ROOT / 'README.md').read_text())
    assert int(count) == len(catalogue.methods())
