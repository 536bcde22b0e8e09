"""The target `'all-linear'`: which matrices of a model it means."""

import collections
import re
from collections.abc import Iterator, Mapping

from peftjax.core import paths
from peftjax.core.sites import ModuleSite, WeightSite

_NUMBERED = re.compile(r'(.*_)?\d+')


def linear_leaves(
    weights: Mapping[str, WeightSite], modules: Mapping[str, ModuleSite], last: str
) -> set[str]:
    """The leaves that `'all-linear'` means, by path.

    They are the matrices that the model multiplies by and that a method can act on: every use is
    a product (`'dot'`, or `'dot transposed'`), and none is a lookup or a convolution. An embedding
    is never among them, even if the head is tied to it. The head is left out.

    The head is the matrix that the program uses last, unless that matrix belongs to a repeated
    layer: then the model has no head, and nothing is left out. In a model with repeated layers,
    the head is the whole module of that matrix: the outermost one that holds no repeated layer
    and no embedding (`classifier`, with `classifier/dense` and `classifier/out_proj`).

    A matrix belongs to a repeated layer if

    - a scan slices it, or the module that holds it runs inside of a scan;
    - the model uses it more than once;
    - its path has a number (`layers_3`, `layers/3`), and another number in the same place holds a
      matrix of the same shape, or the module of that number holds several matrices (the only
      layer of a model of one layer).

    Whatever stands between the layers and the head counts as linear, for example the pooler of a
    BERT that classifies. The pooler of a BERT without a task is the last matrix, and so its head.

    Args:
      weights, modules: of the model.
      last: path of the matrix that the program uses last; empty if there is none.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> {path: site.linear for path, site in mlp.sites.weights.items() if not site.vector}
    {'hidden/kernel': True, 'out/kernel': False}
    """
    return {path for path, site in weights.items() if _is_product(site)} - _head(
        weights, modules, last
    )


def _is_product(site: WeightSite) -> bool:
    if site.layout is None or site.layout.lookup or site.vector:
        return False
    return bool(site.uses) and all(use in ('dot', 'dot transposed') for use in site.uses)


def _head(
    weights: Mapping[str, WeightSite], modules: Mapping[str, ModuleSite], last: str
) -> set[str]:
    layered = _of_layers(weights, modules)
    if last in layered:
        return set()
    lookups = {path for path, site in weights.items() if site.layout and site.layout.lookup}
    parts = last.split('/')
    for depth in range(1, len(parts) if layered else 1):
        module = '/'.join([*parts[:depth], ''])
        if not any(path.startswith(module) for path in layered | lookups):
            return {path for path in weights if path.startswith(module)}
    return {last}


def _of_layers(weights: Mapping[str, WeightSite], modules: Mapping[str, ModuleSite]) -> set[str]:
    """The matrices that belong to a repeated layer."""
    matrices = {path: site for path, site in weights.items() if not site.vector}
    places = {path: list(_numbered(path)) for path in matrices}
    held = collections.Counter(module for found in places.values() for module, _ in found)
    alike = collections.Counter(
        (place, matrices[path].shape) for path, found in places.items() for _, place in found
    )

    def repeated(path: str, site: WeightSite) -> bool:
        module = modules.get(paths.parent(path))
        looped = module is not None and bool(module.scans)
        return (
            bool(site.scanned)
            or looped
            or len(site.uses) > 1
            or any(
                held[module] > 1 or alike[place, site.shape] > 1 for module, place in places[path]
            )
        )

    return {path for path, site in matrices.items() if repeated(path, site)}


def _numbered(path: str) -> Iterator[tuple[str, str]]:
    """For each numbered part of a path: the module so far, and the path without that number."""
    parts = path.split('/')
    for depth, part in enumerate(parts):
        if _NUMBERED.fullmatch(part):
            name = part.rstrip('0123456789')
            without = [*parts[:depth], f'{name}#', *parts[depth + 1 :]]
            yield '/'.join(parts[: depth + 1]), '/'.join(without)
