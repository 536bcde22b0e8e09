"""`quantize`: the weights of a model in few bits."""

from collections.abc import Callable
from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.core.quantized import QuantizedArray, Scheme, is_quantized
from peftjax.core.sites import Sites, WeightSite, check_real
from peftjax.quantize.gguf_blocks import Q4_0, Q4_1, Q8_0
from peftjax.quantize.int8 import Int8
from peftjax.quantize.nf4 import NF4

SCHEMES: dict[str, Callable[[], Scheme]] = {
    'int8': Int8,
    'nf4': NF4,
    'q4_0': Q4_0,
    'q4_1': Q4_1,
    'q8_0': Q8_0,
}
"""By the name that `quantize` and `load` know them by."""


def quantize(model: Model, scheme: str | Scheme, targets: paths.Targets | None = None) -> Model:
    r"""Packs the weights of a model into few bits, to be frozen under an adapter.

    A quantised leaf is a `QuantizedArray` of the same shape and dtype. The model computes with its
    values: `adapt` and `apply` dequantise a weight inside the layer that uses it, and again for the
    backward pass. So there is never a copy of the whole base in full precision. Any method can be
    trained on top. A method that trains a copy of a leaf (`select`, `full`) copies its dequantised
    values.

    `merge` raises MergeError for a quantised leaf that an adapter acts on: give it
    `frozen._replace(params=peftjax.dequantize(frozen.params))`.

    One leaf after the other is computed; to load a model whose weights do not fit in full
    precision, use `peftjax.load(..., quantize=scheme)`.

    Args:
      model: any.
      scheme: 'nf4', 'int8', 'q4_0', 'q4_1' or 'q8_0', or a `Scheme` such as `NF4(double=False)`.
      targets: regular expressions for leaf or module paths; by default every matrix of the layers
        (scanned or numbered modules), except lookup tables and convolutions.

    Raises:
      ValueError: an unknown scheme.
      TargetError: a pattern that matches no matrix.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> small = quantize(mlp, 'nf4', targets=r'hidden')
    >>> small.params['hidden']['kernel'].shape, small.params['hidden']['kernel'].nbytes
    ((4, 8), 272)

    Source: Dettmers et al., QLoRA, 2023 (arXiv:2305.14314), equation 5.
    """
    chosen = scheme_of(scheme)
    leaves = paths.flatten(model.params)
    packed = {}
    for path in quantizable(model.sites, targets):
        check_real(path, leaves[path], 'quantize')
        layout = model.sites.weights[path].layout
        assert layout is not None
        if not is_quantized(leaves[path]):
            packed[path] = pack(leaves[path], layout, chosen)
    return model.replace(params=paths.replace(model.params, packed))


def pack(leaf: Any, layout: Any, scheme: Scheme) -> QuantizedArray:
    """A leaf, an array or of shape alone, by `scheme`."""

    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    return (_packed.eval_shape if abstract else _packed)(leaf, layout, scheme)


_packed = jax.jit(QuantizedArray.of, static_argnums=(1, 2))


def scheme_of(scheme: str | Scheme) -> Scheme:
    """A scheme by its name, or itself."""
    if not isinstance(scheme, str):
        return scheme
    if scheme not in SCHEMES:
        raise ValueError(f'no scheme is called {scheme!r}; write one of {sorted(SCHEMES)}')
    return SCHEMES[scheme]()


def quantizable(sites: Sites, targets: paths.Targets | None = None) -> list[str]:
    """Paths of the leaves that `quantize` takes."""
    if targets is not None:
        return [site.path for site in sites.match_weights(targets)]
    found = [path for path, site in sites.weights.items() if _in_layers(site)]
    if not found:
        raise paths.TargetError(
            'this model has no matrices in layers (of scanned or numbered modules); write targets='
        )
    return found


def _in_layers(site: WeightSite) -> bool:
    """Whether it is a matrix of a layer: scanned, or below a module with a number."""
    layered = bool(site.scanned) or any(
        part.rpartition('_')[2].isdigit() for part in site.path.split('/')
    )
    dots = site.layout is not None and not site.layout.lookup and 'conv' not in site.uses
    return layered and dots and not site.vector
