"""Who may import whom. The arrows keep the library small enough to read from the bottom up."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A package of peftjax -> the others it may import. The lines go from the bottom to the top.
ALLOWED = {
    'core': {'core'},
    'binding': {'core', 'binding'},
    'quantize': {'core', 'quantize'},
    'methods': {'core', 'quantize', 'methods'},
    'training': {'core', 'binding', 'methods', 'quantize', 'training'},
    'models': {'models'},
    'interop': {'core', 'binding', 'quantize', 'methods', 'models', 'interop'},
    'generation': {'core', 'binding', 'generation'},
    'testing': {'core', 'binding', 'methods', 'testing'},
    'cli': {'__init__', 'training'},
    '__init__': {
        *('core', 'binding', 'methods', 'quantize'),
        *('training', 'models', 'interop', 'generation', 'testing'),
    },
}
LIBRARY = sorted((ROOT / 'peftjax').rglob('*.py'))
OURS = [
    path
    for folder in ('peftjax', 'experiments', 'configs', 'benchmarks', 'tests')
    for path in sorted((ROOT / folder).rglob('*.py'))
]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(tree: ast.AST) -> list[str]:
    """Full names of all modules, or of names in modules, that a file imports."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'relative import in line {node.lineno}'
            found += [f'{node.module}.{alias.name}' for alias in node.names]
    return found


def _part(module: str) -> str:
    """'peftjax.core.paths' -> 'core'; 'peftjax' itself is '__init__'."""
    pieces = module.split('.')
    return pieces[1] if len(pieces) > 1 else '__init__'


@pytest.mark.parametrize('path', LIBRARY, ids=_name)
def test_the_library_follows_the_arrows(path):
    here = path.relative_to(ROOT / 'peftjax').parts[0].removesuffix('.py')
    names = _imports(ast.parse(path.read_text()))
    wrong = [n for n in names if n.split('.')[0] == 'peftjax' and _part(n) not in ALLOWED[here]]
    assert not wrong, f'{_name(path)} may import {sorted(ALLOWED[here])} of peftjax, not {wrong}'


@pytest.mark.parametrize('path', LIBRARY, ids=_name)
def test_the_library_knows_no_experiment_and_no_config(path):
    roots = {name.split('.')[0] for name in _imports(ast.parse(path.read_text()))}
    assert not roots & {'experiments', 'configs', 'ml_collections', 'absl', 'grain', 'torch'}


@pytest.mark.parametrize('path', OURS, ids=_name)
def test_no_import_hides_inside_a_function(path):
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            hidden = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not hidden, f'{_name(path)}:{hidden[0].lineno} imports inside a function'


def test_the_library_imports_what_it_declares_and_declares_what_it_imports():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    lines = config['options']['install_requires'].splitlines()
    declared = {re.split(r'[>=<\[]', line)[0] for line in lines if line and line[0] != '#'}
    roots = {
        name.split('.')[0] for path in LIBRARY for name in _imports(ast.parse(path.read_text()))
    }
    roots -= {'peftjax', *sys.stdlib_module_names}
    assert roots == declared  # true as long as these are installed by the name they are imported by


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=_name)
def test_configs_import_only_the_config_library(path):
    roots = {name.split('.')[0] for name in _imports(ast.parse(path.read_text()))}
    assert roots <= {'ml_collections', 'configs', *sys.stdlib_module_names}


def test_importing_peftjax_brings_no_experiment_package():
    heavy = ('ml_collections', 'grain', 'matplotlib', 'tensorboardX', 'orbax')
    code = f'import sys, peftjax; print([name for name in {heavy} if name in sys.modules])'
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == '[]'
