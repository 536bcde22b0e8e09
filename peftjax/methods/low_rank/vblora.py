"""VB-LoRA: low-rank factors composed of vectors from one bank."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import found_in
from peftjax.core.errors import AdapterError
from peftjax.core.model import Model
from peftjax.core.rules import Rule
from peftjax.core.sites import WeightSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import weightwise
from peftjax.methods.blocks import check_divides, check_positive
from peftjax.methods.low_rank.low_rank import rate


class Trained(TypedDict):
    logits_a: Float[jax.Array, 'rank pieces_in vectors']
    logits_b: Float[jax.Array, 'rank pieces_out vectors']


class Prepared(Trained):
    a: Float[jax.Array, 'in rank']
    b: Float[jax.Array, 'rank out']


@described
def vblora(
    *,
    rank: int,
    targets: paths.Targets,
    num_vectors: int = 256,
    vector_length: int = 256,
    topk: int = 2,
    bank_bound: float = 0.02,
    logits_std: float = 0.1,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Vector-bank adaptation: `W' = W + A B`; each piece of a factor is `sum_k softmax(z)_k v_k`.

    For `W: [in, out]`, `A: [in, r]` and `B: [r, out]` are cut into pieces of `b` numbers along
    `in` and `out`. A piece mixes `k` vectors of a bank `[h, b]` that all sites share. Each piece
    has `h` logits `z`. The `k` largest logits choose the vectors, and a softmax over these logits
    weights them. A use adds `2 T r (in + out) + T out` FLOPs in the forward pass; composing the
    factors takes `2 k r (in + out)` and the choice of the logits. Neither logits nor bank start at
    zero: at the start `W'` is close to `W`, but not equal to it. It can be merged.

    Args:
      rank: `r`.
      num_vectors: `h`.
      vector_length: `b`, which divides `in` and `out`.
      topk: `k`.
      bank_bound: the bank starts uniform in `[-bank_bound, bank_bound]`.
      logits_std: deviation of the logits at the start.
      dropout: dropout rate on the input of the change; active when `predict` gets an `adapter_key`.
      targets: which weights, see `Sites.match_weights`.
      dtype: of the trained arrays; the computation runs in the model's own.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{'bank': [h, b], 'sites': {leaf path: {'logits_a': [*stack, r,
      in / b, h], 'logits_b': [*stack, r, out / b, h]}}}`: `h r (in + out) / b` parameters for each
      matrix, and `h b` for all.

    Raises:
      ValueError: a size below 1, `topk` above `num_vectors`, or from `init` a vector length that
        does not divide a side.
      TargetError: from `init`, see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.vblora(rank=2, num_vectors=6, vector_length=4, targets=r'hidden')
    >>> tx.init(jax.random.key(0), mlp)[0]['sites']['hidden/kernel']['logits_b'].shape
    (2, 2, 6)

    References:
      Li et al., VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks, 2024
      (arXiv:2405.15179), section 3.
    """
    check_positive(rank=rank, num_vectors=num_vectors, vector_length=vector_length, topk=topk)
    if topk > num_vectors:
        raise ValueError(f'topk {topk} is more than the {num_vectors} vectors of the bank')
    noise = rate(dropout)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> dict[str, Float[jax.Array, 'rank pieces vectors']]:
        arrays = {}
        for name, side, length in zip('ab', ('input', 'output'), matrix.shape, strict=True):
            check_divides(site, 'vector_length', vector_length, side, length)
            shape = (rank, length // vector_length, num_vectors)
            each = paths.fold_in(key, name)
            arrays[f'logits_{name}'] = logits_std * jax.random.normal(each, shape, dtype)
        return arrays

    def of(bank: Any) -> PeftTransform:
        """The method at its sites, with the bank as it is now."""

        def merge(
            leaves: Trained, matrix: Float[jax.Array, 'in out']
        ) -> Float[jax.Array, 'in out']:
            a, b = _factors(leaves, bank.astype(leaves['logits_a'].dtype), topk)
            return matrix + a @ b

        def prepare(leaves: Trained, matrix: Float[jax.Array, 'in out']) -> Any:
            del matrix
            a, b = _factors(leaves, bank, topk)
            return {**leaves, 'a': a, 'b': b}

        return weightwise(
            init_weight,
            merge,
            _apply,
            own=lambda site: noise,
            prepare=prepare,
            targets=targets,
            name='vblora',
            materialize=materialize,
        )

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Any]:
        shape, bank_key = (num_vectors, vector_length), paths.fold_in(key, 'bank')
        bank = jax.random.uniform(bank_key, shape, dtype, -bank_bound, bank_bound)
        return {'bank': bank, 'sites': of(bank).start(key, model)}

    def own_of(model: Model) -> Any:
        return of(None).own(model)

    def rules(adapter: Any, own: Any) -> Mapping[str, Rule]:
        _check_made_here(adapter)
        return of(adapter['bank']).rules(adapter['sites'], own)

    return PeftTransform(start, rules, own_of)


def _factors(
    leaves: Trained, bank: Float[jax.Array, 'vectors block'], topk: int
) -> tuple[Float[jax.Array, 'in rank'], Float[jax.Array, 'rank out']]:
    """`A` and `B`."""
    a = _composed(leaves['logits_a'], bank, topk).T
    return a, _composed(leaves['logits_b'], bank, topk)


def _composed(
    logits: Float[jax.Array, 'rank pieces vectors'],
    bank: Float[jax.Array, 'vectors block'],
    topk: int,
) -> Float[jax.Array, 'rank side']:
    """One side of all pieces, `sum_k softmax(z)_k v_k` each, `k` the largest logits."""
    values, places = jax.lax.top_k(logits, topk)
    pieces = jnp.einsum('rpk,rpkb->rpb', jax.nn.softmax(values), bank[places])
    return pieces.reshape(len(logits), -1)


def _apply(leaves: Prepared, use: Use) -> Float[jax.Array, '...']:
    return use.forward(use.x) + use.lowrank(
        use.dropped(leaves.get('dropout')), leaves['a'], leaves['b']
    )


def _check_made_here(adapter: Any) -> None:
    if isinstance(adapter, Mapping) and set(adapter) == {'bank', 'sites'}:
        return
    raise AdapterError(
        "vblora expects an adapter {'bank', 'sites'} as its own init makes it, found "
        f"{found_in(adapter)}. Was it made by another transform, or is it a part of a chain's "
        'adapter?'
    )
