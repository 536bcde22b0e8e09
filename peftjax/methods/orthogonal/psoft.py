"""PSOFT: a rotation within the principal subspace of each matrix."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.core.promotion import widened
from peftjax.core.quantized import dense
from peftjax.core.shapes import HostArray
from peftjax.core.sites import WeightSite, check_real
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import Use
from peftjax.core.weightwise import over_stack, weightwise
from peftjax.methods.blocks import check_positive
from peftjax.methods.low_rank.low_rank import rate
from peftjax.methods.orthogonal.rotations import cayley, skew


class Trained(TypedDict):
    k: Float[jax.Array, ' entries']
    a: NotRequired[Float[jax.Array, ' rank']]
    b: NotRequired[Float[jax.Array, ' rank']]


class Leaves(Trained):
    frozen_p: Float[HostArray, 'in rank']
    frozen_q: Float[HostArray, 'rank out']


class Prepared(Leaves):
    moved: Float[jax.Array, 'in rank']


Subspaces = Mapping[str, tuple[Any, Any]]


@described
def psoft(
    subspaces: Subspaces,
    *,
    scale: bool = True,
    neumann_terms: int | None = None,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    materialize: bool = False,
) -> PeftTransform:
    r"""Principal subspace orthogonal fine-tuning: `W' = W + P (diag(a) R diag(b) - I) S Q`.

    `P: [in, r]` and `S Q: [r, out]` hold the `r` largest singular values of `W: [in, out]` and
    their vectors, and are frozen. `R = (I - K)(I + K)^-1` is the rotation of a skew-symmetric `K:
    [r, r]`, whose upper triangle trains. The trained `a, b: [r]` stretch. A use adds `2 T r (in +
    out) + T out` FLOPs in the forward pass. The rotation and `P (diag(a) R diag(b) - I)` take about
    `3 r^3 + 2 in r^2` more, once per call. A step spends `4 T r (in + out) + 2 T r in + 3 T out`,
    since `S Q` is frozen. At the start `K = 0` and `a = b = 1`, so that `W' = W`. It can be merged.

    Args:
      subspaces: `{leaf path: (P, S Q)}`, stack axes in front, as `principal_subspaces` gives them;
        its leaves are the targets. `frozen.own` holds these arrays.
      scale: whether `a` and `b` train; without them, angles within the subspace do not change.
      neumann_terms: see `oft`.
      dropout: dropout rate on the input of the change; active when `predict` gets an `adapter_key`.
      dtype: of the trained arrays; the computation runs in the model's dtype.
      materialize: see `weightwise`.

    Returns:
      A transform whose adapter is `{leaf path: {'k': [*stack, r (r - 1) / 2], 'a': [*stack, r],
      'b': [*stack, r]}}`, with only `'k'` if `scale` is False.

    Raises:
      ValueError: empty `subspaces`; from `init`, factors that do not fit the leaf's matrix.
      TargetError: from `init`, for a path that is no leaf of the model.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> tx = peftjax.psoft(peftjax.principal_subspaces(mlp, rank=3, targets=r'hidden'))
    >>> tx.init(jax.random.key(0), mlp)[0]['hidden/kernel']['k'].shape
    (3,)

    References:
      Wu et al., Memory-Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation, 2025
      (arXiv:2505.11235). The factor `alpha / r` of Hugging Face's peft cancels.
    """
    if not subspaces:
        raise ValueError(
            'subspaces is empty; write peftjax.principal_subspaces(model, rank=64, targets=...)'
        )

    noise = rate(dropout)

    def init_weight(
        key: PRNGKeyArray, matrix: Float[jax.Array, 'in out'], site: WeightSite
    ) -> Trained:
        del key
        p, q = (each.shape for each in subspaces[site.path])
        rank = p[-1]
        if (p[-2:], q[-2:]) != ((matrix.shape[0], rank), (rank, matrix.shape[1])):
            raise ValueError(
                f'the subspace of {site.path!r} has factors {p} and {q}, its matrix is '
                f'{list(matrix.shape)} (leaf {site.shape} {site.dtype}). Is it of another model?'
            )
        k, ones = jnp.zeros(rank * (rank - 1) // 2, dtype), jnp.ones(rank, dtype)
        return {'k': k, 'a': ones, 'b': ones} if scale else {'k': k}

    def own(site: WeightSite) -> dict[str, Any]:
        p, q = subspaces[site.path]
        return {'frozen_p': p, 'frozen_q': q, **noise}

    def moved(leaves: Leaves) -> Float32[jax.Array, 'in rank']:
        """`P (diag(a) R diag(b) - I)`."""
        p = jnp.asarray(leaves['frozen_p'], jnp.float32)
        inner = cayley(skew(leaves['k'][None], p.shape[1]), neumann_terms)[0]
        if scale:
            a, b = (leaves[name].astype(jnp.float32) for name in 'ab')
            inner = a[:, None] * inner * b[None]
        return p @ (inner - jnp.eye(p.shape[1]))

    def merge(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Float[jax.Array, 'in out']:
        q = leaves['frozen_q'].astype(jnp.float32)
        return jnp.add(*widened((matrix, moved(leaves) @ q)))

    def prepare(leaves: Leaves, matrix: Float[jax.Array, 'in out']) -> Prepared:
        del matrix
        return {**leaves, 'moved': moved(leaves)}

    def apply(leaves: Prepared, use: Use) -> Float[jax.Array, '...']:
        x = use.dropped(leaves.get('dropout'))
        return use.forward(use.x) + use.lowrank(x, leaves['moved'], leaves['frozen_q'])

    return weightwise(
        init_weight,
        merge,
        apply,
        own=own,
        name='psoft',
        prepare=prepare,
        targets=paths.exactly(subspaces),
        materialize=materialize,
    )


def principal_subspaces(
    model: Model, *, rank: int, targets: paths.Targets
) -> dict[
    str, tuple[Float32[jax.Array, '*stack in {rank}'], Float32[jax.Array, '*stack {rank} out']]
]:
    r"""The `r` largest singular vectors of each matrix, `W ~ P (S Q)`, as `psoft` takes them.

    Args:
      model: a model with real parameters; under `jax.eval_shape` their shapes are enough.
      rank: `r`.
      targets: which weights, see `Sites.match_weights`.

    Returns:
      `{leaf path: (P: [*stack, in, r], S Q: [*stack, r, out])}` in float32.

    Raises:
      ValueError: a rank below 1 or above the smaller side of a matrix.
      TargetError: see `Sites.match_weights`.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> p, q = peftjax.principal_subspaces(mlp, rank=4, targets=r'hidden')['hidden/kernel']
    >>> bool(jax.numpy.allclose(p @ q, mlp.params['hidden']['kernel'], atol=1e-5))
    True

    References:
      Wu et al., 2025 (arXiv:2505.11235). `P` is orthonormal, and `S` is multiplied into the other
      factor. The signs of singular vectors differ between machines, and an adapter depends on them,
      so the entry of the largest magnitude in each column of `P` is made positive. Hugging Face's
      peft decomposes `W` again when it loads an adapter, without such a rule: to convert one of its
      adapters, give `psoft` the subspaces of the machine that trained it.
    """
    check_positive(rank=rank)
    leaves = paths.flatten(model.params)

    def factors(
        matrix: Float[jax.Array, 'in out'],
    ) -> tuple[Float32[jax.Array, 'in rank'], Float32[jax.Array, 'rank out']]:
        u, s, vt = jnp.linalg.svd(matrix.astype(jnp.float32), full_matrices=False)
        p, q = u[:, :rank], s[:rank, None] * vt[:rank]
        largest = jnp.take_along_axis(p, jnp.abs(p).argmax(0)[None], axis=0)
        return p * jnp.sign(largest), q * jnp.sign(largest).T

    found = {}
    for site in model.sites.match_weights(targets):
        check_real(site.path, site, 'principal_subspaces')
        layout = site.layout
        assert layout is not None
        if rank > min(layout.inputs, layout.outputs):
            raise ValueError(
                f'rank {rank} is larger than {site.path!r} allows: its matrix is [{layout.inputs}, '
                f'{layout.outputs}] (leaf {site.shape} {site.dtype}); write at most '
                f'rank={min(layout.inputs, layout.outputs)}'
            )
        found[site.path] = over_stack(factors, layout)(layout.to_matrix(dense(leaves[site.path])))
    return found
