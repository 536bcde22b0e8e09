"""Pictures that are no drawing of one method: the idea, memory by method, places by method."""

import math
import sys
from collections.abc import Mapping

from docs._ext import block, recipes
from docs._ext.catalogue import families
from docs._ext.recipes import Recipe

_STYLE = (
    'text{font:13px sans-serif;fill:#1f2933}.c{font:12px monospace}.s{font-size:11px;fill:#52606d}'
    '.b{font-weight:600}rect{rx:6px}path{fill:none;stroke:#7b8794;stroke-width:1.4;'
    'marker-end:url(#a)}'
)
_BOXES = (
    # x, y, width, height, colour, title, lines
    (14, 60, 120, 76, '#e4e7eb', 'model.params', ('every number of', 'the model')),
    (210, 14, 150, 76, '#cfe0fc', 'adapter', ('what trains', 'grad and optimiser')),
    (210, 112, 150, 76, '#e4e7eb', 'frozen', ('.params: the rest', '.own: scales, seeds')),
    (440, 60, 146, 76, '#fde2c8', 'predict', ('adapter, frozen, inputs', 'a pure function')),
    (440, 170, 146, 58, '#d9f0d3', 'merged params', ('plain, if it merges',)),
)
_ARROWS = (
    ('M134 88 C170 80 170 52 206 52', 'tx.init', 132, 50),
    ('M134 106 C170 116 170 150 206 150', '', 0, 0),
    ('M360 52 C400 52 400 86 436 90', 'peftjax.adapt', 366, 40),
    ('M360 140 C400 136 400 110 436 108', '', 0, 0),
    ('M360 166 C400 180 400 196 436 198', 'tx.merge', 372, 212),
)


def idea() -> str:
    """The picture of the idea as an SVG file: partition, rules, merge."""
    boxes = []
    for x, y, width, height, colour, title, lines in _BOXES:
        middle = x + width / 2
        boxes.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>')
        boxes.append(f'<text class="b" x="{middle}" y="{y + 26}">{title}</text>')
        boxes += [
            f'<text class="s" x="{middle}" y="{y + 46 + 18 * n}">{line}</text>'
            for n, line in enumerate(lines)
        ]
    arrows = [
        f'<path d="{path}"/><text class="c" x="{x}" y="{y}">{label}</text>'
        for path, label, x, y in _ARROWS
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 240" width="600">'
        f'<title>How a method splits and joins parameters</title><style>{_STYLE}</style>'
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" '
        'style="fill:#7b8794;stroke:none"/></marker></defs>'
        '<rect width="600" height="240" fill="#ffffff"/>'
        f'<g text-anchor="middle">{"".join(boxes)}</g>{"".join(arrows)}</svg>\n'
    )


def memory(found: Mapping[str, Recipe]) -> str:
    """A bar for each method: bytes of training that the method decides, on MiniLM."""
    sizes = {name: 16 * each.summary.trainable + each.own for name, each in found.items()}
    ordered = sorted(sizes.items(), key=lambda pair: pair[1])
    low, high = math.log10(ordered[0][1]), math.log10(ordered[-1][1])
    bars = []
    for row, (name, size) in enumerate(ordered):
        y, width = 18 * row, 6 + 150 * (math.log10(size) - low) / (high - low)
        bars.append(
            f'<text x="118" y="{y + 13}" class="name">{name}</text>'
            f'<rect x="124" y="{y + 3}" width="{width:.0f}" height="12"/>'
            f'<text x="{130 + width:.0f}" y="{y + 13}" class="size">{_size(size)}</text>'
        )
    return (
        f'<svg class="bars" viewBox="0 0 350 {18 * len(ordered) + 4}" role="img" '
        f'aria-label="Memory by method"><title>Memory by method</title>{"".join(bars)}</svg>'
    )


def places(found: Mapping[str, Recipe]) -> str:
    """The drawing with a letter at each place, and a table of the methods by place."""
    used = [name for name in block.PLACES if any(name in each.places for each in found.values())]
    letters = {name: chr(ord('A') + number) for number, name in enumerate(used)}
    rows: dict[str, list[str]] = {}
    for name, each in found.items():
        key = ' '.join(sorted(letters[place] for place in each.places))
        rows.setdefault(key, []).append(f'[{name}](methods/{name}.md)')
    table = [f'| {key} | {", ".join(names)} |' for key, names in sorted(rows.items())]
    marked = dict.fromkeys(used, 'place')
    drawing = block.draw(marked, 'Where methods act in a transformer block', letters)
    return '\n'.join(
        ['```{raw} html', drawing, '```', '', '| places | methods |', '|---|---|', *table, '']
    )


def chooser(found: Mapping[str, Recipe]) -> str:
    """A table of all methods by what one chooses them for."""
    lines = ['| method | numbers | merges | accuracy |', '|---|---|---|---|']
    for family in families():
        for name in family.methods:
            each = found[name]
            score = recipes.scores().get(family.methods[name].get('configs', ('',))[0])
            accuracy = f'{score.mean:.3f} ± {score.deviation:.3f}' if score else ''
            merges = 'yes' if each.merges else 'no'
            lines.append(
                f'| [{name}](methods/{name}.md) | {each.summary.trainable:,} | {merges} '
                f'| {accuracy} |'
            )
    return '\n'.join(lines) + '\n'


def _size(count: float) -> str:
    power = min(2, int(math.log10(count)) // 3)
    return f'{count / 1000**power:.3g} {("B", "kB", "MB")[power]}'


if __name__ == '__main__':
    sys.stdout.write(idea())
