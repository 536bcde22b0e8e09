"""Trainable tokens: only a few rows of an embedding train."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from peftjax.core import paths
from peftjax.core.leafwise import leafwise
from peftjax.core.model import Model
from peftjax.core.sites import WeightSite, check_real
from peftjax.core.transform import PeftTransform, described
from peftjax.methods.sparse.select import trained_copy


@described
def trainable_tokens(
    ids: Sequence[int], *, targets: paths.Targets, dtype: Any = jnp.float32
) -> PeftTransform:
    r"""Trains the rows `ids` of an embedding `E: [vocabulary, features]`; all others stay frozen.

    The adapter holds the rows themselves: `E'[ids] = rows`. A head tied to the embedding reads them
    as well. In a separate head, a kernel `W: [features, vocabulary]`, they are columns:
    `W'[:, ids] = rowsᵀ`; target both for new tokens of such a model. At the start they are the rows
    of `E`, so that `E' = E`. It costs no products; each step copies `E` once to put the rows in,
    and its gradient is gathered from that of `E'`, which is dense. It can be merged.

    Args:
      ids: the tokens, each once; for example new tokens of an enlarged embedding, or special
        tokens.
      targets: regular expressions, full match on leaf paths of embeddings and untied heads.
      dtype: of the trained rows, see `select`.

    Returns:
      A transform whose adapter is `{leaf path: [len(ids), features]}`.

    Raises:
      ValueError: no ids, a repeated or a negative one, or from `init` one beyond the vocabulary or
        a leaf that is no `[vocabulary, features]`, and no kernel of a head.
      TargetError: from `init`, if a pattern matches no leaf.

    >>> import flax.linen as nn
    >>> embed, tokens = nn.Embed(7, 3), jnp.zeros((1, 2), int)
    >>> model = peftjax.wrap(embed, embed.init(jax.random.key(0), tokens), tokens)
    >>> tx = peftjax.trainable_tokens([5, 6], targets=r'embedding')
    >>> tx.init(jax.random.key(0), model)[0]['embedding'].shape
    (2, 3)

    References:
      The Hugging Face library's method of this name, which has no paper; its files hold the rows,
      as this adapter does.
    """
    rows = np.asarray(ids, np.int32).reshape(-1)
    if not len(rows) or len(set(rows.tolist())) < len(rows) or rows.min() < 0:
        raise ValueError(
            f'ids must be different whole numbers of at least 0, got {list(ids)}; write for '
            'example ids=[5, 6]'
        )

    def choose(model: Model) -> list[str]:
        chosen = model.sites.match_leaves(targets)
        for path in chosen:
            site = model.sites.weights[path]
            check_real(site.path, site, 'trainable_tokens')
            if len(site.shape) != 2:
                raise ValueError(
                    f'{path!r} has shape {site.shape} {site.dtype}, which is no '
                    '[vocabulary, features]; target the leaf of an embedding'
                )
            size = site.shape[1 if _of_head(site) else 0]
            if rows.max() >= size:
                raise ValueError(
                    f'token {rows.max()} is beyond the {size} tokens of {path!r} '
                    f'{site.shape} {site.dtype}; write ids below {size}'
                )
        return chosen

    def start(leaf: jax.Array, site: WeightSite) -> jax.Array:
        table = leaf.T if _of_head(site) else leaf
        return trained_copy(jnp.take(table, rows, axis=0), dtype)

    def change(
        entry: Float[jax.Array | np.ndarray, 'ids features'],
        leaf: Float[jax.Array, '_ _'],
        own: Any,
    ) -> Float[jax.Array, '_ _']:
        new = entry.astype(leaf.dtype)
        if isinstance(own, Mapping):
            return leaf.at[:, own['columns']].set(new.T, unique_indices=True)
        return leaf.at[own].set(new, unique_indices=True)

    def fits(entry: jax.Array, leaf: Any, own: Any) -> bool:
        of_head = isinstance(own, Mapping)
        count = len(own['columns']) if of_head else len(own)
        return leaf.ndim == 2 and entry.shape == (count, leaf.shape[0 if of_head else 1])

    return leafwise(
        'trainable_tokens',
        start,
        change,
        choose,
        fits,
        own=lambda site: {'columns': rows} if _of_head(site) else rows,
        keeps='part',
    )


def _of_head(site: WeightSite) -> bool:
    """Whether a leaf is the kernel of a head, with a column for each token.

    Flax calls it `kernel`; a table that is multiplied by one-hot rows has a name of its own.
    """
    layout = site.layout
    kernel = site.path.rpartition('/')[2] == 'kernel'
    return kernel and layout is not None and not layout.lookup and layout.columns == (1,)
