"""Every notebook runs from start to end, imports the public package only, and stays small."""

import ast
import os
import pathlib

import nbclient
import nbformat
import pytest

import peftjax

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / 'notebooks').glob('*.ipynb'))
MOST_BYTES = 300_000

every = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def code(path: pathlib.Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return '\n'.join(cell.source for cell in cells if cell.cell_type == 'code')


def test_there_are_notebooks():
    assert NOTEBOOKS


# Twelve runs on a real model take a while; tests of sweeps train tiny ones.
SLOW = {'sweep'}


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in SLOW else ())
        for path in NOTEBOOKS
    ],
)
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


@every
def test_it_imports_the_public_package_only(path):
    imported = [
        name.name if isinstance(node, ast.Import) else f'{node.module}.{name.name}'
        for node in ast.walk(ast.parse(code(path)))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    ]
    ours = {
        name for name in imported if name.split('.')[0] in ('peftjax', 'experiments', 'configs')
    }
    assert ours == {'peftjax'}


@every
def test_its_stored_outputs_read_well(path):
    """Executed in order from a fresh kernel, every output kept, none an error."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell.outputs if out.output_type == 'error']
    assert path.stat().st_size < MOST_BYTES
