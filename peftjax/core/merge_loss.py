"""How much of the change of an adapter is lost when its merged weights are rounded."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from peftjax.core import paths
from peftjax.core.entries import Adapter
from peftjax.core.frozen import Frozen
from peftjax.core.holes import is_hole
from peftjax.core.quantized import dense
from peftjax.core.sites import check_real
from peftjax.core.transform import PeftTransform


def merge_loss(
    transform: PeftTransform,
    adapter: Adapter,
    frozen: Frozen,
    dtype: Any = None,
    *,
    params: Any = None,
) -> dict[str, Float32[jax.Array, '']]:
    r"""For each merged leaf, the share of its change that rounding loses.

    With `W` the leaf of the model, `W'` the merged leaf in float32, and `round` the cast to
    `dtype`, it is

        |round(W') - W'| / |W' - W|

    in Frobenius norms, of all layers of a stacked leaf together, computed in float32. A share of
    0.01 is harmless. From about 0.5 on, the merged model has little to do with the adapted one:
    write `transform.merge(adapter, frozen, dtype=jnp.float32)`, or keep the adapter apart.
    bfloat16 has 8 significant bits, so that rounding moves a weight by up to 0.4 % of its size,
    more than many adapters change it. Where nothing changed, the share is 0 if `W` is a value of
    `dtype`, and infinite if rounding moves it.

    Args:
      transform: the method.
      adapter, frozen: from `transform.init`; the adapter may have been trained since.
      dtype: the dtype of the merged weights; the leaf's own dtype by default.
      params: the parameters of the model, from which the change is counted. Needed where `frozen`
        lacks them: where leaves moved into the adapter (`select`, `full`), and where a method
        started from a part of them (PiSSA, OLoRA, LoftQ).

    Returns:
      `{leaf path: share}`.

    Raises:
      MergeError: see `PeftTransform.merge`.
      ValueError: `params` is needed, or belongs to another model; the message names the leaf.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.lora(rank=2, targets=r'hidden')
    >>> adapter, frozen = tx.init(jax.random.key(0), mlp)
    >>> adapter = peftjax.testing.perturb(adapter, seed=0, size=0.01)
    >>> share = peftjax.merge_loss(tx, adapter, frozen, dtype=jnp.bfloat16)['hidden/kernel']
    >>> bool(share > 0.1)
    True
    """
    whole = paths.flatten(transform.merge(adapter, frozen, dtype=jnp.float32))
    held = paths.slots(frozen.params)
    given = held if params is None else paths.slots(params)
    found = {}
    for path in transform.rules(adapter, frozen.own):
        leaf = given.get(path)
        if leaf is None or is_hole(leaf) or (params is None and transform.rest is not None):
            raise ValueError(
                f'frozen does not hold the original {path!r} of the model; write '
                'peftjax.merge_loss(..., params=model.params)'
                if params is None
                else f'params lack {path!r}; pass the params of the model that was adapted'
            )
        check_real(path, leaf, 'merge_loss')
        kept = held[path].dtype if dtype is None else dtype
        found[path] = _share(dense(leaf), whole[path], kept)
    return found


def _share(
    weight: jax.Array, merged: Float32[jax.Array, '*shape'], dtype: Any
) -> Float32[jax.Array, '']:
    lost = jnp.linalg.norm((merged.astype(dtype).astype(jnp.float32) - merged).reshape(-1))
    change = jnp.linalg.norm((merged - weight.astype(jnp.float32)).reshape(-1))
    # Where nothing changed and nothing was lost, the share is 0 and not NaN.
    return jnp.where(lost == 0, 0.0, lost / change)
