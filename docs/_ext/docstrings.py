"""Docstrings, signatures and mathematics as Sphinx wants them."""

import inspect
import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

from docs._ext.catalogue import public_names

# Mathematics and literal text stay as they are; what is in single backticks is code.
_SPANS = re.compile(r':\w+:`[^`]*`|``.*?``|`(?P<code>[^`]+)`', re.DOTALL)
_SECTION = r'^%s:\n((?:[ ]+.*\n?|\n(?=[ ]))+)'
_SHORTER = (
    # `Targets`, written out.
    (r'str \| \S*Sequence\[str \| \S*Selection\] \| \S*Selection', 'Targets'),
    (r'<class \'jax\.numpy\.(\w+)\'>', r'\1'),
    (r'<(?:jax\.)?_src\.custom_derivatives\.custom_jvp object at 0x\w+>', 'relu'),
    (r'<function (\w+)[^>]*>', r'\1'),
    # Any other value that cannot be written: Sphinx would read the whole signature as text.
    (r'= <[^<>]*>', '= ...'),
)


def process_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Turns the lines of a docstring, in place, into what napoleon reads."""
    del app, what, name, obj, options
    lines[:] = as_rst('\n'.join(lines)).split('\n')


def process_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, result: str
) -> tuple[str | None, str]:
    """Types and defaults by the names that people know. A property has no signature."""
    del app, what, name, obj, options
    return signature and short_names(signature), result and short_names(result)


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool:
    """Leaves out the fields of a named tuple, which its docstring describes."""
    del app, what, name, options
    return skip or (inspect.getdoc(obj) or '').startswith('Alias for field number')


def as_rst(text: str) -> str:
    """Code in single backticks as literal text, results and attributes as fields."""
    parts = re.split(r'((?:^>>> .*\n?(?:^(?!\s*$).*\n?)*))', text, flags=re.MULTILINE)
    parts[::2] = [_inline(part) for part in parts[::2]]
    text = ''.join(parts)
    text = re.sub(_SECTION % 'Returns', r':returns:\n\1', text, flags=re.MULTILINE)
    return re.sub(_SECTION % 'Attributes', _attributes, text, flags=re.MULTILINE)


def short_names(signature: str) -> str:
    """A signature without what only Python needs to know."""
    for pattern, short in _SHORTER:
        signature = re.sub(pattern, short, signature)
    return signature


def resolve(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """Links types that a signature names by their module to the page of their public name."""
    if node.get('refdomain') != 'py':
        return None
    target = node['reftarget']
    page = _PAGES.get(target)
    if page is None:
        # What is not ours, or not public, is text; a page that someone wrote a link to must exist.
        return None if node.get('refexplicit') else contnode
    uri = app.builder.get_relative_uri(node['refdoc'], page[1])
    return nodes.reference('', '', contnode, internal=True, refuri=f'{uri}#{page[0]}')


def visit_math(translator: Any, node: Any) -> None:
    """A formula as MathML, which browsers show without a script."""
    display = 'block' if isinstance(node, nodes.math_block) else 'inline'
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def _inline(text: str) -> str:
    """Markdown's code as reStructuredText's, and nothing else special outside of it."""
    found, end = [], 0
    for match in _SPANS.finditer(text):
        span = match[0] if match['code'] is None else f'``{" ".join(match["code"].split())}``'
        found += [_plain(text[end : match.start()]), span]
        end = match.end()
        if text[end : end + 1].isalnum():
            found.append('\\ ')
    return ''.join([*found, _plain(text[end:])])


def _plain(text: str) -> str:
    """Stars, bars and low lines stand for themselves."""
    return re.sub(r'([*|]|(?<=\w)_(?!\w))', r'\\\1', text)


def _attributes(match: re.Match[str]) -> str:
    """A list of fields, of which one entry may name several."""
    entries = re.split(r'^(?=\S)', inspect.cleandoc('\n' + match[1]), flags=re.MULTILINE)
    pairs = [entry.partition(':') for entry in entries if entry.strip()]
    lines = [f'    * **{names}** -- ' + ' '.join(text.split()) for names, _, text in pairs]
    return '\n'.join([':Attributes:', *lines, '', ''])


def _pages() -> dict[str, tuple[str, str]]:
    """The public name and the page, by every name that Python knows the value by."""
    found: dict[str, tuple[str, str]] = {}
    for each in public_names():
        found[each.full] = (each.full, each.page)
        # An alias, such as `Delta`, is of a module of Python's.
        if getattr(each.value, '__module__', '').startswith('peftjax.'):
            known = f'{each.value.__module__}.{each.value.__qualname__}'
            found[known] = (each.full, each.page)
    return found


_PAGES = _pages()
