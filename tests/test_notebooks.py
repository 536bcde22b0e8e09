"""Every notebook runs from start to end, imports the public package only, and is stored bare."""

import ast
import os
import pathlib
import re

import nbclient
import nbformat
import pytest

import peftjax

FOLDER = pathlib.Path(__file__).parent.parent / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))

every = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: pathlib.Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def text(path: pathlib.Path, kind: str) -> str:
    return '\n'.join(cell.source for cell in cells(path, kind))


def test_they_are_numbered_in_their_order():
    numbers = [int(path.stem.partition('_')[0]) for path in NOTEBOOKS]
    titles = [text(path, 'markdown').splitlines()[0] for path in NOTEBOOKS]
    assert numbers == list(range(1, 13))
    assert [title.partition('. ')[0] for title in titles] == [f'# {number}' for number in numbers]


# The build of the site runs them as well, for every change: `make docs`.
@pytest.mark.slow
@every
def test_it_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    # The tests' eight fake devices and strict promotion are not what a reader has; the package is.
    ours = ('XLA_FLAGS', 'JAX_NUMPY_DTYPE_PROMOTION', 'JAX_NUMPY_RANK_PROMOTION')
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment['PYTHONPATH'] = str(pathlib.Path(peftjax.__file__).parent.parent)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}}
    )
    client.execute(env=environment)  # CellExecutionError shows the cell and its traceback.
    shown = [out for cell in notebook.cells for out in cell.get('outputs', ())]
    assert any('image/png' in out.get('data', ()) for out in shown), 'it shows no plot'
    warned = [out.text for out in shown if out.get('name') == 'stderr']
    assert not warned, warned


@every
def test_it_imports_the_public_package_only(path):
    imported = [
        name.name if isinstance(node, ast.Import) else f'{node.module}.{name.name}'
        for node in ast.walk(ast.parse(text(path, 'code')))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    ]
    ours = {
        name for name in imported if name.split('.')[0] in ('peftjax', 'experiments', 'configs')
    }
    public = {'peftjax', *(f'peftjax.{name}' for name in peftjax.__all__)}
    assert 'peftjax' in ours <= public


@every
def test_it_is_stored_without_outputs(path):
    """The site executes it, so that outputs are those of the code beside them."""
    assert all(cell.execution_count is None and not cell.outputs for cell in cells(path, 'code'))
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == 'python3'


@every
def test_its_links_lead_to_notebooks(path):
    links = re.findall(r'\]\(([^):]+)\)', text(path, 'markdown'))
    assert all((FOLDER / link).is_file() for link in links), links
