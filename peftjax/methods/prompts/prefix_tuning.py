"""Prefix tuning: trained keys and values in front of the keys and values of every attention."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries, found_in, is_abstract
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.roles import require
from peftjax.core.rules import ROOT, Rule
from peftjax.core.sites import ModuleSite
from peftjax.core.transform import PeftTransform, described, masked_by
from peftjax.methods.blocks import check_positive
from peftjax.methods.prompts.cores import check_core
from peftjax.methods.prompts.prefix_rules import at_core, of_call


@masked_by('num_virtual_tokens')
@described
def prefix_tuning(
    *,
    num_virtual_tokens: int,
    targets: paths.Targets,
    projection: int | None = None,
    embedding: int | None = None,
    gate: bool = False,
    shift_positions: bool = True,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Attention over `[P_k; K]` and `[P_v; V]`: a learned start of the key and value cache.

    Acts on attention cores, which are called with `query: [B, T, N, H]`, `key, value: [B, S, K, H]`
    and optionally with a mask and a bias. Every query sees the prefix, with a bias of zero. In an
    encoder-decoder, all three kinds of attention can be targets, including cross-attention. The
    core itself computes the attention over the longer keys, so its scale, soft cap, window and
    dropout stay the same. The role `attention` names the cores, see `peftjax.Roles`; the cores of
    Flax's attention modules are recognised, `'.../attention_fn'`. Prefix keys are inserted after
    RoPE and are not rotated. Direct (also P-tuning v2): `P_k, P_v: [n, K, H]` train for each core,
    normal of deviation 0.02. With `projection` they are computed as in the paper, `tanh(E W + b)
    W_l + b_l`, from one `E: [n, e]` and `W: [e, projection]` for all cores and a last layer for
    each core. Keep this network to continue training, and drop it with `export_prefix`. `2 n K H`
    numbers train for each core (with a projection, `2 (projection + 1) K H` for each core and `n e
    + (e + 1) projection` once), and `4 n T N H + 8 n T N` FLOPs are added in the forward pass for
    each core and example. It does not start at the identity. It acts on activations, so `merge`
    raises.

    Args:
      num_virtual_tokens: `n`.
      targets: regular expressions, full match on paths of attention cores.
      projection: width of the reparametrising network, or None for none.
      embedding: `e`; by default the width of the first core, `N H`.
      gate: multiply the prefix by the mean of `sigmoid(x v + c)` over an example, where `x` is the
        first argument of the module that calls the core.
      shift_positions: give the tokens positions from `n` on, as with a cache, if the model has the
        role `positions` or `position_shift`. Otherwise the tokens keep their positions. If the
        model has the role `prefix_length`, as T5 has, the prefix stands directly before the first
        token of each row, and gets the bias of its distance and not zero. In Whisper, the tokens
        of the decoder move if one of its cores is a target; frames of speech never move.
      dtype: of the trained arrays; the computation runs in the model's dtype.

    Returns:
      A transform whose adapter is `{'sites': {module path: {'key', 'value': [*stack, n, K, H]}}}`;
      with `projection` they are `[*stack, projection, K, H]`, beside `'key_bias'` and
      `'value_bias'`, and there is `'network': {'embedding', 'kernel', 'bias'}`; with `gate`
      `'gate': [*stack, features]` and `'gate_bias': [*stack]`.

    Raises:
      ValueError: a size below 1; in a call, a gate with packed rows or with a cache.
      TargetError: from `init`, if a pattern matches no module, or a module that is not an attention
        core; if the model has declared no roles.

    >>> import flax.linen as nn
    >>> class Core(nn.Module):
    ...     def __call__(self, query, key, value):
    ...         return jax.nn.dot_product_attention(query, key, value)
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         x = nn.Dense(8)(x).reshape(1, 3, 2, 4)
    ...         return Core(name='core')(x, x, x)
    >>> x = jnp.ones((1, 3, 8))
    >>> variables, roles = Net().init(jax.random.key(0), x), peftjax.Roles(attention='core')
    >>> model = peftjax.wrap(Net(), variables, x, roles=roles)
    >>> tx = peftjax.prefix_tuning(num_virtual_tokens=5, targets=r'core')
    >>> tx.init(jax.random.key(0), model)[0]['sites']['core']['key'].shape
    (5, 2, 4)

    References:
      Li and Liang, Prefix-Tuning, 2021 (arXiv:2101.00190), sections 4.2 and 4.3; Liu et al.,
      P-Tuning v2, 2021 (arXiv:2110.07602), section 3; Mao et al., UniPELT, 2021 (arXiv:2110.07577),
      section 3.2, for the gate, which multiplies keys and values as in AdapterHub.
    """
    check_positive(num_virtual_tokens=num_virtual_tokens)
    for name, size in (('projection', projection), ('embedding', embedding)):
        if size is not None:
            check_positive(**{name: size})

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Any]:
        roles = require(model.roles, model.takes, 'prefix_tuning', example=('attention',))
        if shift_positions and roles.positions and not roles.position_shift:
            require(roles, model.takes, 'prefix_tuning(shift_positions=True)', 'token_ids')
        sites = model.sites.match_modules(targets)
        rows = num_virtual_tokens if projection is None else projection
        entries = {s.path: _init_site(paths.fold_in(key, s.path), s, rows, dtype) for s in sites}
        for site in sites:
            if projection is not None:
                shape = (*site.stack, *site.inputs[1][-2:])
                entries[site.path] |= {
                    'key_bias': jnp.zeros(shape, dtype),
                    'value_bias': jnp.zeros(shape, dtype),
                }
            if gate:
                entries[site.path] |= _init_gate(paths.fold_in(key, site.path), site, dtype)
        named = {path: Entry('prefix_tuning', leaves) for path, leaves in entries.items()}
        if projection is None:
            return {'sites': named}
        width = embedding or sites[0].inputs[0][-2] * sites[0].inputs[0][-1]
        first, second = jax.random.split(key)
        network = {
            'embedding': jax.random.normal(first, (num_virtual_tokens, width), dtype),
            'kernel': jax.nn.initializers.lecun_normal()(second, (width, projection), dtype),
            'bias': jnp.zeros(projection, dtype),
        }
        return {'sites': named, 'network': network}

    def rules(adapter: dict[str, Any], own: Any) -> dict[str, Rule]:
        del own
        _check(adapter)
        direct = jax.eval_shape(_direct, adapter) if is_abstract(adapter) else _direct(adapter)
        found: dict[str, Rule] = {path: at_core(path, entry) for path, entry in direct.items()}
        root = of_call(tuple(found), num_virtual_tokens, shift_positions)
        return {**found, ROOT: root} if found else found

    return PeftTransform(start, rules)


def export_prefix(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter of direct prefix tuning that computes the same outputs, without the network.

    Args:
      adapter: an adapter of `prefix_tuning`, with a projection or without.

    Returns:
      An adapter for `prefix_tuning` with the same settings but `projection=None`.

    >>> peftjax.export_prefix({'sites': {}})
    {'sites': {}}

    References:
      Li and Liang, Prefix-Tuning, 2021 (arXiv:2101.00190), section 4.3.
    """
    _check(adapter)
    return {'sites': _direct(adapter)}


def _direct(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: leaves}` with keys and values `[*stack, n, K, H]`."""
    if 'network' not in adapter:
        return dict(adapter['sites'])
    network = adapter['network']
    hidden = jnp.tanh(network['embedding'] @ network['kernel'] + network['bias'][None])

    def made(leaves: Mapping[str, Any], name: str) -> Float[jax.Array, '*stack n heads H']:
        rows = jnp.einsum('np,...pkh->...nkh', hidden, leaves[name])
        return rows + leaves[f'{name}_bias'][..., None, :, :]

    return {
        path: Entry(
            'prefix_tuning',
            {
                **{name: leaf for name, leaf in leaves.items() if name.startswith('gate')},
                'key': made(leaves, 'key'),
                'value': made(leaves, 'value'),
            },
        )
        for path, leaves in adapter['sites'].items()
    }


def _init_site(
    key: PRNGKeyArray, site: ModuleSite, rows: int, dtype: Any
) -> dict[str, Float[jax.Array, '...']]:
    check_core(site)
    shape = (*site.stack, rows, *site.inputs[1][-2:])
    keys = jax.random.split(key)
    return {
        'key': 0.02 * jax.random.normal(keys[0], shape, dtype),
        'value': 0.02 * jax.random.normal(keys[1], shape, dtype),
    }


def _init_gate(
    key: PRNGKeyArray, site: ModuleSite, dtype: Any
) -> dict[str, Float[jax.Array, '...']]:
    if not site.around or len(site.around[0]) != 3:
        raise paths.TargetError(
            f'the module around {site.path!r} is called with {site.around}, but a gate reads a '
            'first array [batch, length, features]; write gate=False'
        )
    shape = (*site.stack, site.around[0][-1])
    return {
        'gate': 0.02 * jax.random.normal(paths.fold_in(key, 'gate'), shape, dtype),
        'gate_bias': jnp.zeros(site.stack, dtype),
    }


def _check(adapter: Any) -> None:
    if not isinstance(adapter, Mapping) or set(adapter) - {'network'} != {'sites'}:
        raise AdapterError(
            "prefix_tuning expects an adapter {'sites'} or {'sites', 'network'} as its own init "
            f'makes it, found {found_in(adapter)}. Was it made by another transform, or is it a '
            "part of a chain's adapter?"
        )
    check_entries(adapter['sites'], 'prefix_tuning')
