"""The page of each method, of each family, and of all methods."""

from collections.abc import Iterator, Mapping
from typing import Any

from docs._ext import block, recipes
from docs._ext.catalogue import ROOT, Family, families, functions_of_methods, helpers, summary_of

HOME = 'https://github.com/peftjax/peftjax/blob/main/'
LEGEND = (
    '<p class="legend"><span class="weights">weights</span> change here, '
    '<span class="activations">activations</span> change here</p>'
)


def pages() -> Iterator[tuple[str, str]]:
    """Path in docs/ without a suffix, and text, of every page about methods."""
    yield 'methods/index', _index()
    for family in families():
        yield f'methods/family_{family.name}', family_page(family)
        for name, entry in family.methods.items():
            yield f'methods/{name}', _method(name, entry, family)


def toctree(names: list[str], *options: str) -> str:
    """A toctree directive of these pages."""
    return '\n'.join(['```{toctree}', *(f':{option}:' for option in options), *names, '```'])


def _index() -> str:
    found = families()
    count = sum(len(family.methods) for family in found)
    parts = [
        '# Methods',
        f'peftjax has {count} methods, and [choosing a method](../choosing.md) helps to pick one. '
        'A page has the formula, a drawing of where the method acts, its cost, how many numbers it '
        'trains on MiniLM, its config, its result in [the comparison](../reproductions.md), and '
        'the papers.',
        'Costs are those that a forward pass on T tokens adds for each matrix or module. A step '
        'adds three times as much (forward, the gradient by the input, the gradient by what '
        'trains), where a page does not say otherwise. The tests hold both to 3 % of what the '
        'compiler counts.',
        *(_listed(family) for family in found),
        toctree([f'family_{family.name}' for family in found], 'hidden'),
    ]
    return '\n\n'.join(parts) + '\n'


def _listed(family: Family) -> str:
    return f'## {family.title}\n\n{family.about.strip()}\n\n{_table(family)}'


def _table(family: Family) -> str:
    makes = functions_of_methods()
    rows = [
        f'| [{name}]({name}.md) | {_cell(summary_of(makes[name]))} |' for name in family.methods
    ]
    return '\n'.join(['| method | what it computes |', '|---|---|', *rows])


def _cell(text: str) -> str:
    return text.replace('|', '\\|')


def family_page(family: Family) -> str:
    """What the methods of a family have in common, and a table of them."""
    parts = [
        f'# {family.title}',
        family.about.strip(),
        _table(family),
        toctree(list(family.methods), 'hidden'),
    ]
    return '\n\n'.join(parts) + '\n'


def _method(name: str, entry: Mapping[str, Any], family: Family) -> str:
    found = recipes.recipe(name)
    parts = [
        f'# {name}',
        summary_of(functions_of_methods()[name]),
        f'## When to use it\n\n{entry["when"].strip()}',
        '## Where it acts',
        '```{raw} html\n' + block.draw(found.places, f'Where {name} acts') + LEGEND + '\n```',
        f'## On MiniLM\n\n{_counts(found)}',
        *_runs(entry),
        f'## Reference\n\n```{{eval-rst}}\n.. autofunction:: peftjax.{name}\n```',
        *_beside(name),
        _source(name, family),
    ]
    return '\n\n'.join(parts) + '\n'


def _counts(found: recipes.Recipe) -> str:
    counts = found.summary
    text = (
        f'The adapter has {counts.trainable:,} numbers, {counts.percent_of_base:.3g} % of the '
        f'{counts.base:,} of the base.'
    )
    # Scales and seeds are a few numbers; projections and masks are worth a word.
    if found.own > 1000:
        text += (
            f' Numbers of the method that do not train take {found.own / 1e6:,.2f} MB beside it.'
        )
    return text


def _runs(entry: Mapping[str, Any]) -> Iterator[str]:
    """The configs of a method, with what was measured."""
    if 'configs' not in entry:
        yield 'No config of ours trains it yet; the counts above are those of rank or size 8 to 96.'
        return
    lines = [
        '| config | trained with the head | rate | accuracy | seeds |',
        '|---|---|---|---|---|',
    ]
    for config in entry['configs']:
        link = f'[`configs/{config}.py`]({HOME}configs/{config}.py)'
        score = recipes.scores().get(config)
        if score is None:
            lines.append(f'| {link} | | | see its header | |')
        else:
            lines.append(
                f'| {link} | {score.trainable:,} | {score.rate:g} '
                f'| {score.mean:.3f} ± {score.deviation:.3f} | {score.seeds} |'
            )
    first = entry['configs'][0]
    yield '## Config and result'
    yield '\n'.join(lines)
    yield (
        'Accuracy is on unseen films, mean and deviation of seeds, in [the comparison]'
        '(../reproductions.md) on a small budget. A trained head alone reaches '
        f'{recipes.scores()["frozen"].mean:.3f} there, and all weights '
        f'{recipes.scores()["full"].mean:.3f}. To run it:'
    )
    yield f'```\npeftjax train --config configs/{first}.py --workdir runs/{first}\n```'


def _beside(name: str) -> Iterator[str]:
    """Functions that stand in the method's file."""
    module = functions_of_methods()[name].__module__
    for other, function in helpers().items():
        if function.__module__ == module:
            yield f'See also [`peftjax.{other}`](../reference/peftjax.{other}.md): ' + summary_of(
                function
            )


def _source(name: str, family: Family) -> str:
    path = functions_of_methods()[name].__module__.replace('.', '/') + '.py'
    if not (ROOT / path).is_file():
        path = path.removesuffix('.py') + '/__init__.py'
    return (
        f'Source: [`{path}`]({HOME}{path}). '
        f'Other methods of the family: [{family.title}](family_{family.name}.md).'
    )
