"""Bottleneck adapters: a small trained network parallel to a module, or after it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries, check_own
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.rules import ModuleRule
from peftjax.core.transform import PeftTransform, described, padded_by
from peftjax.core.use import ModuleUse
from peftjax.methods.bottleneck.reading import (
    Activation,
    Reads,
    activation_of,
    check_reads,
    read,
    width,
)

_ALWAYS = frozenset({'down', 'down_bias', 'up', 'up_bias'})
_INITS = ('houlsby', 'bert', 'mam')


@padded_by('size')
@described
def bottleneck(
    *,
    size: int,
    targets: paths.Targets,
    activation: Activation = jax.nn.relu,
    scale: float | str = 1.0,
    reads: Reads = 'output',
    init: str = 'houlsby',
    norm_before: bool = False,
    norm_after: bool = False,
    gate: bool = False,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Bottleneck adapters: `h' = h + s (f(x D + d) U + u)`.

    `h: [..., features]` is the output of each targeted module, `x: [..., width]` is the input of
    the adapter, `D: [width, m]`, `U: [m, features]`. `reads='output'` is the sequential adapter, `x
    = h`; `'input'` is the parallel one, where `x` is the module's first array argument. `'after'`
    reads the sum of the residual and `h` (after the norm, if the model has one there) at modules
    with the role `residual_end`. `houlsby`, `pfeiffer` and `parallel_adapter` are the named forms.
    It costs `2 T m (width + features) + T (2 m + 3 features)` FLOPs a call forward with ReLU, and
    `m (width + features + 1) + features` parameters for each module.

    Args:
      size: `m`, the width of the bottleneck.
      targets: regular expressions, full match on module paths (`model.sites.modules`).
      activation: `f`, a function or `'relu'`, `'gelu'` (the exact one), `'gelu_tanh'`, `'swish'`,
        `'tanh'`.
      scale: `s`, or `'learned'` for one trained number for each module, which starts at 1.
      reads: see above. `'after'` and `'input'` read the model's own values: an earlier method of a
        chain changes only `h`.
      init: `'houlsby'`, `D` and `U` from a normal of deviation 1e-2 cut at two deviations;
        `'bert'`, a normal of deviation 0.02; `'mam'`, `D ~ U(-1/sqrt(width), 1/sqrt(width))` and
        `U = 0`, exactly the identity. Biases start from zero.
      norm_before, norm_after: a trained layer norm on `x` before `D`, or on the term that is added.
      gate: multiply the added term by one number for each example: the mean of `sigmoid(x g + c)`
        over its tokens, without padding. `g: [width]` trains; `h` must be `[batch, length,
        features]`.
      dtype: of the trained arrays; the computation runs in the model's own.

    Returns:
      A transform whose adapter is `{module path: {'down': [*stack, width, m], 'down_bias',
      'up': [*stack, m, features], 'up_bias'}}`, with `'scale'`, `'gate'`, `'gate_bias'` and
      `'norm_before'`, `'norm_before_bias'`, `'norm_after'`, `'norm_after_bias'` where asked for.
      It acts on activations, so `merge` raises.

    Raises:
      ValueError: `size` below 1, or an unknown word; with a gate, a call with a cache, since it
        sees only a part of an example.
      TargetError: from `init`, if a pattern matches no module, or a module without the input that
        it reads.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.bottleneck(size=2, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden']['down'].shape
    (8, 2)

    References:
      Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019 (arXiv:1902.00751),
      section 2.1, where `'houlsby'` comes from; the authors' code has 1e-3. He et al., Towards a
      Unified View, 2021 (arXiv:2110.04366), section 3.3 for `scale` and the parallel form. Mao et
      al., UniPELT, 2021 (arXiv:2110.07577), section 3.2 for `gate`.
    """
    if size < 1:
        raise ValueError(f'size must be at least 1, got {size}')
    if init not in _INITS:
        raise ValueError(f'init must be one of {", ".join(_INITS)}, got {init!r}')
    if isinstance(scale, str) and scale != 'learned':
        raise ValueError(f"scale is a number or 'learned', got {scale!r}")
    check_reads(reads)
    function = activation_of(activation)
    learned = isinstance(scale, str)
    names = _ALWAYS | (
        ({'scale'} if learned else set())
        | ({'gate', 'gate_bias'} if gate else set())
        | ({'norm_before', 'norm_before_bias'} if norm_before else set())
        | ({'norm_after', 'norm_after_bias'} if norm_after else set())
    )

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Entry]:
        adapter = {}
        for site in model.sites.match_modules(targets):
            sizes = width(site, reads, model), size, site.features
            arrays = _start(paths.fold_in(key, site.path), init, sizes, site.stack, dtype)
            arrays = {name: array for name, array in arrays.items() if name in names}
            adapter[site.path] = Entry('bottleneck', arrays)
        return adapter

    def own(model: Model) -> Any:
        if isinstance(scale, str):
            return ()
        numbers = {'factor': jnp.float32(scale)}
        sites = [site.path for site in model.sites.match_modules(targets)]
        return Entry('bottleneck', dict.fromkeys(sites, numbers))

    def rules(adapter: dict[str, Entry], own: Any) -> dict[str, ModuleRule]:
        check_entries(adapter, 'bottleneck', names)
        if learned:
            own = dict.fromkeys(adapter, {})
        else:
            check_own(own, adapter, 'bottleneck')
        apply = functools.partial(_apply, function, reads)
        return {
            path: ModuleRule(dict(entry), functools.partial(apply, path, own[path]), whole=gate)
            for path, entry in adapter.items()
        }

    return PeftTransform(start, rules, own)


def _start(
    key: PRNGKeyArray, init: str, sizes: tuple[int, int, int], stack: tuple[int, ...], dtype: Any
) -> dict[str, Float[jax.Array, '...']]:
    """All arrays that a setting may ask for.

    sizes: the width that is read, `m`, and the features that are added to.
    """
    inputs, size, outputs = sizes
    down_key, up_key, gate_key = (paths.fold_in(key, name) for name in ('down', 'up', 'gate'))
    ones = {'scale': (), 'norm_before': (inputs,), 'norm_after': (outputs,)}
    zeros = {
        'down_bias': (size,),
        'up_bias': (outputs,),
        'gate_bias': (),
        'norm_before_bias': (inputs,),
        'norm_after_bias': (outputs,),
    }
    return {
        'down': _draw(init, down_key, (*stack, inputs, size), dtype),
        'up': _draw(init, up_key, (*stack, size, outputs), dtype, last=True),
        'gate': 0.02 * jax.random.normal(gate_key, (*stack, inputs), dtype),
        **{name: jnp.ones((*stack, *shape), dtype) for name, shape in ones.items()},
        **{name: jnp.zeros((*stack, *shape), dtype) for name, shape in zeros.items()},
    }


def _apply(
    function: Callable[[jax.Array], jax.Array],
    reads: Reads,
    path: str,
    numbers: Mapping[str, jax.Array],
    leaves: dict[str, Float[jax.Array, '...']],
    use: ModuleUse,
) -> Float[jax.Array, '... features']:
    """`h + g s (f(x D + d) U + u)` at one call of a module; `g` is the gate, if there is one."""
    x = read(use, reads)
    _check_widths(path, leaves, x, use.output)
    here = {name: leaf.astype(x.dtype) for name, leaf in {**leaves, **numbers}.items()}
    change = _change(here, function, x.reshape(-1, x.shape[-1])).reshape(use.output.shape)
    if 'gate' in here:
        change = change * _gate(x, here, use)
    return use.output + change


def _change(
    here: dict[str, Float[jax.Array, '...']],
    function: Callable[[jax.Array], jax.Array],
    x: Float[jax.Array, 'T width'],
) -> Float[jax.Array, 'T features']:
    """`s (f(x D + d) U + u)`, with the norms that `here` has on `x` and on the whole."""
    if 'norm_before' in here:
        x = _norm(x, here['norm_before'], here['norm_before_bias'])
    inner = function(x @ here['down'] + here['down_bias'][None])
    outer = inner @ here['up'] + here['up_bias'][None]
    outer = here['scale' if 'scale' in here else 'factor'] * outer
    if 'norm_after' in here:
        outer = _norm(outer, here['norm_after'], here['norm_after_bias'])
    return outer


def _gate(
    x: Float[jax.Array, '... width'], here: Mapping[str, jax.Array], use: ModuleUse
) -> Float[jax.Array, 'B _ 1']:
    """The mean of a sigmoid over the tokens of each example, for each token or each row."""
    tokens = use.tokens()
    tokens.check(x.shape, 'a gate')
    scores = jax.nn.sigmoid(x @ here['gate'] + here['gate_bias'])
    return tokens.means(scores, 'bottleneck(gate=True)')[..., None]


def _norm(
    x: Float[jax.Array, 'T width'],
    weight: Float[jax.Array, ' width'],
    bias: Float[jax.Array, ' width'],
) -> Float[jax.Array, 'T width']:
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normal = (centred * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)
    return normal * weight[None] + bias[None]


def _check_widths(path: str, leaves: Any, x: jax.Array, output: jax.Array) -> None:
    down, up = leaves['down'], leaves['up']
    if down.ndim != 2 or down.shape[0] != x.shape[-1] or up.shape[-1] != output.shape[-1]:
        raise AdapterError(
            f"the adapter's 'down' and 'up' for module {path!r} are {down.shape} {down.dtype} and "
            f'{up.shape} {up.dtype}, but it reads {x.shape} {x.dtype} and adds to {output.shape} '
            f'{output.dtype}. Was it made for another model?'
        )


def _draw(
    init: str, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any, last: bool = False
) -> Float[jax.Array, '...']:
    if init == 'houlsby':
        draw = jax.nn.initializers.truncated_normal(1e-2, dtype, lower=-2.0, upper=2.0)
        return draw(key, shape)
    if init == 'bert':
        return 0.02 * jax.random.normal(key, shape, dtype)
    if last:
        return jnp.zeros(shape, dtype)
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
