"""The extension: it writes the generated pages before Sphinx looks for sources."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from docs._ext import (
    binding_tables,
    docstrings,
    files_tables,
    method_pages,
    pictures,
    recipes,
    reference_pages,
)
from docs._ext.catalogue import DOCS, ROOT, public_names

HOME = 'https://github.com/peftjax/peftjax/'
FOLDERS = ('methods', 'reference', 'notebooks', 'generated')
"""Folders of docs/ that this extension writes and git ignores. A build deletes all other files in
them."""

_LOG = logging.getLogger(__name__)
_ABOVE = re.compile(r'\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)')


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the parts."""
    app.connect('builder-inited', _write)
    app.connect('source-read', _relink)
    # Before napoleon, which reads the sections.
    app.connect('autodoc-process-docstring', docstrings.process_docstring, priority=400)
    app.connect('autodoc-process-signature', docstrings.process_signature)
    app.connect('autodoc-skip-member', docstrings.skip_member)
    app.connect('missing-reference', docstrings.resolve)
    app.connect('env-check-consistency', _check_names)
    app.add_html_math_renderer(
        'mathml', (docstrings.visit_math, None), (docstrings.visit_math, None)
    )
    return {'parallel_read_safe': True, 'parallel_write_safe': True}


def _write(app: Sphinx) -> None:
    """Writes what changed, so that a second build reads few pages again; removes what is gone."""
    del app
    written = set()
    for path, text in _texts():
        file = DOCS / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding='utf-8') != text:
            file.write_text(text, encoding='utf-8')
        written.add(file)
    for folder in FOLDERS:
        for file in (DOCS / folder).rglob('*'):
            if file.is_file() and file not in written:
                file.unlink()


def _check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of every public name that no page describes."""
    del app
    described = env.domains.python_domain.objects
    for each in public_names():
        if each.full not in described:
            _LOG.warning('%s is public and has no page', each.full)


def _texts() -> Iterator[tuple[str, str]]:
    for pages in (method_pages.pages, reference_pages.pages):
        for path, text in pages():
            yield f'{path}.md', text
    yield 'generated/files_tables.md', files_tables.tables()
    yield 'generated/binding_tables.md', binding_tables.tables()
    found = recipes.all_recipes()
    yield 'generated/places.md', pictures.places(found)
    yield 'generated/memory.md', f'```{{raw}} html\n{pictures.memory(found)}\n```\n'
    yield 'generated/chooser.md', pictures.chooser(found)
    for notebook in sorted((ROOT / 'notebooks').glob('*.ipynb')):
        yield f'notebooks/{notebook.name}', notebook.read_text(encoding='utf-8')
    yield 'notebooks/index.md', _gallery()


def _gallery() -> str:
    names = [path.stem for path in sorted((ROOT / 'notebooks').glob('*.ipynb'))]
    about = 'One idea each. They are executed when this site is built; `make notebooks` opens them.'
    return f'# Notebooks\n\n{about}\n\n{method_pages.toctree(names)}\n'


def _relink(app: Sphinx, name: str, source: list[str]) -> None:
    """Links to files of the repository that are no pages lead to the repository."""
    del app
    if name.partition('/')[0] in FOLDERS:
        source[0] = source[0].replace('](../docs/', '](../')
    else:
        source[0] = _ABOVE.sub(_target, source[0])


def _target(match: re.Match[str]) -> str:
    path, anchor = match[1], match[2] or ''
    pages = {
        'REPRODUCTIONS.md': 'reproductions.md',
        'CONTRIBUTING.md': 'contributing.md',
        'CHANGELOG.md': 'changelog.md',
    }
    if path in pages:
        return f']({pages[path]}{anchor})'
    if path.startswith('notebooks/'):
        return f']({path}{anchor})'
    kind = 'tree' if pathlib.Path(ROOT, path).is_dir() else 'blob'
    return f']({HOME}{kind}/main/{path}{anchor})'
