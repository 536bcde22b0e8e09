"""Prompt tuning: trained embeddings of a few virtual tokens."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries
from peftjax.core.model import Model
from peftjax.core.quantized import dense
from peftjax.core.rules import Rule
from peftjax.core.transform import PeftTransform, described, masked_by
from peftjax.methods.blocks import check_positive
from peftjax.methods.prompts.virtual_order import check_places
from peftjax.methods.prompts.virtual_tokens import embedding_of, rules_of, table_of


@masked_by('num_virtual_tokens')
@described
def prompt_tuning(
    *,
    num_virtual_tokens: int,
    targets: paths.Targets | None = None,
    init: str | Sequence[int] = 'vocabulary',
    common: int = 5000,
    places: Sequence[int] | None = None,
    keep_virtual: bool = False,
    shift_positions: bool = True,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""A trained prompt: the model runs on `[P; E(tokens)]`, `P: [n, features]`.

    Acts on the word embedding and on the whole call. The sequence grows by `n` virtual tokens, and
    attention masks, positions and token types grow with it. Outputs `[batch, length, ...]` lose the
    virtual tokens again, so that they line up with the caller's tokens and labels. Pooling runs
    over the extended sequence, including virtual tokens: the first position is then a virtual
    token, as in the Hugging Face library. In an encoder-decoder, the sequence of the encoder grows.
    If the encoder reads no tokens, as in Whisper, the sequence of the decoder grows. `n features`
    numbers train. A forward pass costs as much as with `n` more tokens. It does not start at the
    identity. It acts on activations, so `merge` raises.

    Args:
      num_virtual_tokens: `n`.
      targets: regular expression, full match on the path of the word embedding; by default the role
        `embedding` of the model.
      init: `'vocabulary'`, rows of the embedding drawn without replacement; `'uniform'` in (-0.5,
        0.5); `'normal'`, deviation 1; or token ids (class labels, a text) whose embeddings
        start the prompt, repeated from the first if there are too few.
      common: draw only from this many first rows; some vocabularies are sorted by frequency.
      places: the index of the token before which each virtual token is placed, ascending; None
        places all of them in front. Padding does not count, so padding on either side changes
        nothing. In a row with fewer tokens, a virtual token comes after the last one.
      keep_virtual: leave the virtual positions in the outputs, so that the last of them predicts
        the first token, as in the Hugging Face library.
      shift_positions: count the virtual tokens in the positions of the tokens. False keeps the
        positions of the tokens. This is for a prompt after a module that has already added
        positions (`targets` of all `embeddings`, with a random `init`), as in AdapterHub.
      dtype: of the trained array; the computation runs in the model's dtype.

    Returns:
      A transform whose adapter is `{module path: {'prompt': [n, features]}}`.

    Raises:
      ValueError: a size below 1, or an unreadable `init` or `places`; from `init`, ids beyond the
        vocabulary; in a call, packed rows, or a second call of the embedding for the same tokens.
      TargetError: from `init`, unless the target is one module that embeds the growing sequence. If
        `init` takes its rows, or with `shift_positions`, the module must be a table of tokens.

    >>> import flax.linen as nn
    >>> ids = jnp.zeros((1, 2), int)
    >>> class Net(nn.Module):
    ...     peftjax_roles = peftjax.Roles(token_ids='ids')
    ...     @nn.compact
    ...     def __call__(self, ids):
    ...         return nn.Dense(2)(nn.Embed(7, 3, name='embed')(ids))
    >>> model = peftjax.wrap(Net(), Net().init(jax.random.key(0), ids), ids)
    >>> tx = peftjax.prompt_tuning(num_virtual_tokens=4, targets=r'embed')
    >>> tx.init(jax.random.key(0), model)[0]['embed']['prompt'].shape
    (4, 3)

    References:
      Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, 2021
      (arXiv:2104.08691), sections 2 and 3.2.
    """
    check_positive(num_virtual_tokens=num_virtual_tokens, common=common)
    order = check_places(places, num_virtual_tokens)
    if isinstance(init, str) and init not in _DRAWS and init != 'vocabulary':
        raise ValueError(
            f'init {init!r} is unknown: write {", ".join(map(repr, _DRAWS))}, or token ids'
        )

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Entry]:
        site = embedding_of(model, targets, 'prompt_tuning')
        key = paths.fold_in(key, site.path)
        drawn = _DRAWS.get(init) if isinstance(init, str) else None
        # A module after which positions have been added need not hold a table.
        table = table_of(model, site) if shift_positions or drawn is None else ''
        if drawn is not None:
            return prompt_at(site.path, drawn(key, (num_virtual_tokens, site.features), dtype))
        vocabulary = model.sites.weights[table].shape[0]
        rows = _rows(init, key, num_virtual_tokens, min(common, vocabulary), vocabulary)
        found = jnp.take(dense(paths.flatten(model.params)[table]), rows, axis=0)
        return prompt_at(site.path, found.astype(dtype))

    def rules(adapter: dict[str, Entry], own: Any) -> dict[str, Rule]:
        del own
        check_entries(adapter, 'prompt_tuning', {'prompt'})
        ((path, entry),) = adapter.items()
        return rules_of(path, entry['prompt'], order, keep_virtual, shift_positions)

    return PeftTransform(start, rules)


def prompt_at(path: str, prompt: Float[jax.Array, 'n features']) -> dict[str, Entry]:
    """The adapter of `prompt_tuning` with that prompt at an embedding."""
    return {path: Entry('prompt_tuning', {'prompt': prompt})}


def _rows(
    init: Any, key: PRNGKeyArray, count: int, common: int, vocabulary: int
) -> Integer[jax.Array, ' {count}']:
    if init == 'vocabulary':
        return jax.random.choice(key, common, (count,), replace=count > common)
    ids = np.asarray(init)
    if not ids.size or ids.dtype.kind not in 'iu' or ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f'init {init!r} must be token ids from 0 to {vocabulary - 1}; encode a text with the '
            "model's tokenizer"
        )
    return jnp.asarray(np.resize(ids, count))


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Float[jax.Array, '...']:
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


_DRAWS = {'uniform': _uniform, 'normal': jax.random.normal}
