"""Who may import whom, and how long a file may be.

The arrows keep the library small enough to read from the bottom up.
"""

import ast
import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import peftjax
from peftjax import plan, serving, testing, train

ROOT = Path(__file__).parents[1]
# A row of the table in CONTRIBUTING.md: a folder or a file, what it is for, what it may import.
_ROW = re.compile(r'^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|$', re.MULTILINE)
ALLOWED = {
    where: set(re.findall('`([^`]+)`', may))
    for where, may in _ROW.findall((ROOT / 'CONTRIBUTING.md').read_text())
}
FOLDERS = sorted({where.split('/')[0] for where in ALLOWED})
LIBRARY = sorted((ROOT / 'peftjax').rglob('*.py'))
OURS = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob('*.py'))]
# Packages whose module has another name.
_IMPORTED_AS = {
    'absl-py': 'absl',
    'google-re2': 're2',
    'mlflow-skinny': 'mlflow',
    'nvidia-cudnn-cu12': 'nvidia-cudnn-cu12',
    'orbax-checkpoint': 'orbax',
    'pillow': 'PIL',
    'scikit-learn': 'sklearn',
}
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
_PUBLIC = {
    *('peftjax', 'peftjax.plan', 'peftjax.serving', 'peftjax.train', 'peftjax.testing'),
    *(f'peftjax.{name}' for name in peftjax.__all__),
    *(f'peftjax.plan.{name}' for name in plan.__all__),
    *(f'peftjax.serving.{name}' for name in serving.__all__),
    *(f'peftjax.train.{name}' for name in train.__all__),
    *(f'peftjax.testing.{name}' for name in vars(testing) if not name.startswith('_')),
}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.AST:
    if path.suffix == '.py':
        return ast.parse(path.read_text())
    cells = json.loads(path.read_text())['cells']
    return ast.parse('\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code'))


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


def imported_roots(paths: list[Path]) -> set[str]:
    """The packages that files import, without Python's own and without peftjax."""
    names = [name for path in paths for name in _imports(_tree(path))]
    return {name.split('.')[0] for name in names} - {'peftjax', *sys.stdlib_module_names}


def _row(path: Path) -> str:
    """The row of the table that a file, or a module written as a path, belongs to."""
    return next(str(each) for each in (path, *path.parents) if str(each) in ALLOWED)


def _is_allowed(module: str, allowed: set[str]) -> bool:
    """Whether a file whose row ends with `allowed` may import `module`, or a name in it."""
    root, *inside = module.split('.')
    if root not in FOLDERS:
        return True
    if root != 'peftjax':
        return _row(Path(root, *inside)) in allowed
    public = 'peftjax' in allowed and module in _PUBLIC
    return public or 'peftjax.*' in allowed or bool(allowed.intersection(inside[:1]))


def _tracked(*patterns: str) -> list[str]:
    """Names of the files that git has."""
    listed = subprocess.run(
        ['git', 'ls-files', *patterns], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return listed.stdout.split()


def test_every_folder_with_code_is_in_the_table():
    names = _tracked('*.py', '*.ipynb')
    assert {Path(name).parts[0] for name in names if '/' in name} == set(FOLDERS)


def test_no_python_file_has_more_than_300_lines():
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in _tracked('*.py')}
    assert not {name: count for name, count in lines.items() if count > 300}


@pytest.mark.parametrize('path', [*OURS, *NOTEBOOKS], ids=_name)
def test_every_file_follows_the_arrows(path):
    row = _row(path.relative_to(ROOT))
    wrong = [name for name in _imports(_tree(path)) if not _is_allowed(name, ALLOWED[row])]
    assert not wrong, f'{_name(path)} may import {sorted(ALLOWED[row])} of ours, not {wrong}'


@pytest.mark.parametrize(
    ('module', 'row', 'may'),
    [
        ('peftjax.core.paths', 'peftjax/methods', True),
        ('peftjax.binding.adapt', 'peftjax/methods', False),
        ('peftjax.train.build', 'peftjax/plan', True),
        ('peftjax.plan.estimate', 'peftjax/sweep', True),
        ('peftjax.core.paths.near_names', 'peftjax/sweep', False),
        ('peftjax.sweep.rows', 'configs', False),
        ('peftjax.core.paths', 'benchmarks', True),
        ('numpy', 'configs', True),
    ],
)
def test_the_table_says_what_it_should(module, row, may):
    assert _is_allowed(module, ALLOWED[row]) is may


@pytest.mark.parametrize('path', OURS, ids=_name)
def test_no_import_hides_inside_a_function(path):
    tree = _tree(path)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            hidden = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not hidden, f'{_name(path)}:{hidden[0].lineno} imports inside a function'


def root_of(requirement: str) -> str:
    """The package that a requirement is imported as."""
    name = re.split(r'[>=<\[]', requirement)[0]
    return _IMPORTED_AS.get(name, name.replace('-', '_'))


def libraries_by_name() -> set[str]:
    """The packages that are imported by name, where they are used, by `library` of `optional`."""
    named = [re.findall(r"library\(\s*'([\w.]+)'", path.read_text()) for path in LIBRARY]
    return {name.split('.')[0] for names in named for name in names}


def _declared(section: str, key: str) -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    lines = [line for line in config[section][key].splitlines() if line and line[0] != '#']
    return {root_of(line) for line in lines}


def _needs_an_extra(path: Path) -> bool:
    return path.relative_to(ROOT / 'peftjax').parts[0] in ('train', 'sweep', 'reproduce')


def test_the_library_imports_what_it_declares_and_declares_what_it_imports():
    declared = _declared('options', 'install_requires')
    assert imported_roots([path for path in LIBRARY if not _needs_an_extra(path)]) == declared


def test_training_imports_what_its_extras_declare():
    extras = [_declared('options.extras_require', name) for name in ('train', 'search')]
    needed = imported_roots([path for path in LIBRARY if _needs_an_extra(path)])
    assert needed <= set().union(_declared('options', 'install_requires'), *extras)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=_name)
def test_configs_import_only_the_config_library(path):
    assert imported_roots([path]) <= {'ml_collections', 'configs'}


def _printed(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.strip()


def test_importing_peftjax_brings_nothing_that_methods_do_not_need():
    heavy = {
        *('ml_collections', 'grain', 'matplotlib', 'tensorboardX', 'orbax', 'optax', 'IPython'),
        *('flax.nnx', 'gguf', 'tokenizers', 'huggingface_hub', 'safetensors', 'peftjax.models'),
    }
    code = f'import sys, peftjax; print(sorted(set(sys.modules) & {heavy}))'
    assert _printed(code) == '[]'


@pytest.mark.parametrize(
    'code',
    [
        'import peftjax; print(peftjax.train.eva.__name__)',
        'import peftjax; import peftjax.train; print(peftjax.train.eva.__name__)',
        'import peftjax.train; print(peftjax.train.eva.__name__)',
        'from peftjax import train; print(train.eva.__name__)',
        'from peftjax import *; print(train.eva.__name__)',
    ],
)
def test_training_is_there_however_it_is_asked_for(code):
    assert _printed(code) == 'eva'


def test_what_is_imported_late_is_what_type_checkers_see():
    tree = ast.parse((ROOT / 'peftjax' / '__init__.py').read_text())
    (seen,) = [node for node in tree.body if isinstance(node, ast.If)]
    modules = {name.rpartition('.')[2]: name for name in _imports(seen)}
    late = {
        name: module if module == f'peftjax.{name}' else f'{module}.{name}'
        for name, module in peftjax._LATE.items()
    }
    assert late == modules
    assert set(late) <= set(peftjax.__all__) <= set(dir(peftjax))


def test_a_name_that_is_not_there_says_so():
    with pytest.raises(AttributeError, match="module 'peftjax' has no attribute 'lorra'"):
        peftjax.lorra  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue] wrong on purpose
