"""A stack of equal blocks, scanned or looped, with optional rematerialisation."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.along_batch import along_batch

# Policies of jax.checkpoint_policies: what the forward pass keeps. Those that take arguments (named
# values, offloading) are left out.
REMAT_POLICIES = (
    'everything_saveable',
    'nothing_saveable',
    'dots_saveable',
    'dots_with_no_batch_dims_saveable',
)


def apply_stack(
    block: type[nn.Module],
    fields: Mapping[str, Any],
    x: jax.Array,
    *shared: Any,
    count: int,
    scan: bool,
    remat: str | None,
    own: Any = None,
) -> tuple[jax.Array, Any]:
    """Runs x through `count` blocks; call it inside a compact method.

    A block takes (x, own, *shared) and returns (x, present). The second result is `present`, any
    tree of arrays, stacked over the blocks.

    scan: compile one block, with parameters stacked on axis 0 under `layers`; else the blocks are
        `layers_0`, ...
    remat: None keeps all activations, 'full' only the inputs of blocks; or one of REMAT_POLICIES.
    own: arrays with a leading axis of `count`; each block gets its slice.

    Raises:
        ValueError: remat is unknown.
    """
    block, x = _rematerialised(block, remat, scan), along_batch(x)
    if scan:
        scanned = nn.scan(
            block,
            # All collections, not only params: values that an interceptor sows are stacked too.
            variable_axes={True: 0},
            split_rngs={True: True},
            in_axes=(0, *(nn.broadcast for _ in shared)),  # pyright: ignore[reportArgumentType] (flax types it by its default)
            length=count,
        )
        return scanned(**fields, name='layers')(x, own, *shared)
    kept = []
    for index in range(count):
        here = jax.tree.map(lambda leaf, index=index: leaf[index], own)
        x, present = block(**fields, name=f'layers_{index}')(x, here, *shared)
        kept.append(present)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)


def _rematerialised(block: type[nn.Module], remat: str | None, scan: bool) -> type[nn.Module]:
    if remat is None:
        return block
    if remat != 'full' and remat not in REMAT_POLICIES:
        raise ValueError(
            f"remat {remat!r} is unknown: use None, 'full' or one of {', '.join(REMAT_POLICIES)}"
        )
    policy = None if remat == 'full' else getattr(jax.checkpoint_policies, remat)
    # Inside a scan the loop itself keeps the compiler from undoing the recomputation.
    return nn.remat(block, policy=policy, prevent_cse=not scan)


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a scanned model -> parameters of a looped one: `layers` -> `layers_0`, ...

    Example:
        >>> looped = unstack_layers({'layers': {'kernel': jnp.ones((2, 3, 4))}})
        >>> {name: layer['kernel'].shape for name, layer in looped.items()}
        {'layers_0': (3, 4), 'layers_1': (3, 4)}
    """
    params = dict(params)
    stacked = params.pop('layers')
    for index in range(jax.tree.leaves(stacked)[0].shape[0]):
        params[f'layers_{index}'] = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
    return params


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a looped model -> parameters of a scanned one; undoes `unstack_layers`."""
    params = dict(params)
    names = sorted(
        (name for name in params if re.fullmatch(r'layers_\d+', name)),
        key=lambda name: int(name.removeprefix('layers_')),
    )
    layers = [params.pop(name) for name in names]
    return params | {'layers': jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
