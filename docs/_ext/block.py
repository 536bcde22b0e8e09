"""Drawings of one transformer block, in SVG, with the places where methods act marked."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from peftjax.core.rules import CallRule, ModuleRule, Rule


class Place(NamedTuple):
    """A box of the drawing.

    Attributes:
        label: what the box says.
        paths: a regular expression that the paths of its sites in MiniLM match.
        x, y, width: where it stands, in units of the drawing; every box is 30 high.
    """

    label: str
    paths: str
    x: int
    y: int
    width: int


PLACES = {
    'tokens': Place('prompt', r'ROOT', 268, 10, 62),
    'embedding': Place('embedding', r'embeddings.*', 70, 10, 192),
    'query': Place('query', r'layers/attention/query.*', 70, 64, 60),
    'key': Place('key', r'layers/attention/key.*', 136, 64, 60),
    'value': Place('value', r'layers/attention/value.*', 202, 64, 60),
    'core': Place('attention core', r'layers/attention/core', 70, 112, 192),
    'out': Place('output', r'layers/attention/output.*', 70, 160, 192),
    'after_attention': Place('after sublayer', r'layers/attention(/branch)?', 70, 202, 192),
    'norm': Place('add, layer norm', r'layers/attention/layer_norm.*', 70, 244, 192),
    'up': Place('feed-forward, up', r'layers/ffn/intermediate.*', 70, 292, 192),
    'down': Place('feed-forward, down', r'layers/ffn/output.*', 70, 340, 192),
    'beside': Place('adapter', r'layers/ffn', 268, 316, 62),
    'after_ffn': Place('after sublayer', r'layers/ffn/branch', 70, 382, 192),
    'norm_ffn': Place('add, layer norm', r'layers/ffn/layer_norm.*', 70, 424, 192),
    'hidden': Place('hidden states', r'layers', 70, 466, 192),
    'head': Place('head', r'(pooler|classifier).*', 70, 508, 192),
}
HEIGHT, WIDTH, BOX = 548, 340, 30
_ARROWS = (
    ('embedding', 'query'), ('embedding', 'key'), ('embedding', 'value'), ('query', 'core'),
    ('key', 'core'), ('value', 'core'), ('core', 'out'), ('out', 'norm'), ('norm', 'up'),
    ('up', 'down'), ('down', 'norm_ffn'), ('norm_ffn', 'hidden'), ('hidden', 'head'),
)  # fmt: skip


def places(rules: Mapping[str, Rule]) -> dict[str, str]:
    """Where rules act: for each place `'weights'` or `'activations'`.

    Args:
        rules: of a transform on MiniLM, by path; the path of a rule on the whole call is empty.

    Raises:
        ValueError: a path belongs to no place of the drawing.
    """
    found: dict[str, str] = {}
    for path, rule in rules.items():
        kind = 'activations' if isinstance(rule, ModuleRule | CallRule) else 'weights'
        known = path if path and not isinstance(rule, CallRule) else 'ROOT'
        fits = [name for name, place in PLACES.items() if re.fullmatch(place.paths, known)]
        if not fits:
            raise ValueError(f'no place of the drawing has the path {path!r}')
        found[fits[0]] = kind
    # A prefix acts on the whole call too, to number the tokens behind it.
    return {name: kind for name, kind in found.items() if name != 'tokens' or 'core' not in found}


def draw(
    marked: Mapping[str, str], title: str, letters: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The drawing as SVG for a page, whose style sheet colours it.

    Args:
        marked: kinds of the places to mark, as `places` gives them.
        title: for readers who cannot see it.
        letters: that stand before the labels of places.
    """
    parts = [_residual(), *(_arrow(a, b) for a, b in _ARROWS)]
    for name, place in PLACES.items():
        if _shown(name, marked):
            label = f'{letters[name]}: {place.label}' if name in letters else place.label
            parts.append(_box(place._replace(label=label), marked.get(name, '')))
    return (
        f'<svg class="block" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f'<title>{title}</title>{"".join(parts)}</svg>'
    )


def _shown(name: str, marked: Iterable[str]) -> bool:
    """Places that a model has only with a method appear only where they are marked."""
    return name in marked or name not in ('tokens', 'beside', 'after_attention', 'after_ffn')


def _box(place: Place, kind: str) -> str:
    middle = place.x + place.width / 2
    return (
        f'<g class="{kind}"><rect x="{place.x}" y="{place.y}" width="{place.width}" '
        f'height="{BOX}" rx="5"/><text x="{middle}" y="{place.y + 19}">{place.label}</text></g>'
    )


def _arrow(start: str, end: str) -> str:
    """A line from the lower edge of one box to the upper edge of another."""
    a, b = PLACES[start], PLACES[end]
    narrow = a if a.width < b.width else b
    x = narrow.x + narrow.width / 2
    return f'<line x1="{x}" y1="{a.y + BOX}" x2="{x}" y2="{b.y}"/>'


def _residual() -> str:
    """The two residual connections, to the left of the sublayers."""
    first = f'M 166 {PLACES["embedding"].y + BOX + 10} H 40 V {PLACES["norm"].y + 15} H 70'
    second = f'M 166 {PLACES["norm"].y + BOX + 9} H 40 V {PLACES["norm_ffn"].y + 15} H 70'
    return f'<path d="{first}"/><path d="{second}"/>'
