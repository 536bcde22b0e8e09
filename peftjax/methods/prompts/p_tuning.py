"""P-tuning: the embeddings of virtual tokens, made by a small network."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries, is_abstract
from peftjax.core.model import Model
from peftjax.core.rules import Rule
from peftjax.core.transform import PeftTransform, described, masked_by
from peftjax.methods.blocks import check_positive
from peftjax.methods.prompts.prompt_tuning import prompt_at
from peftjax.methods.prompts.virtual_order import check_places
from peftjax.methods.prompts.virtual_tokens import embedding_of, rules_of, table_of

Encoder = Literal['mlp', 'lstm']


# An LSTM would also read the rows of zeros in front of a shorter prompt.
@masked_by('num_virtual_tokens', unless={'encoder': 'lstm'})
@described
def p_tuning(
    *,
    num_virtual_tokens: int,
    targets: paths.Targets | None = None,
    encoder: Encoder = 'mlp',
    hidden: int | None = None,
    num_layers: int = 2,
    places: Sequence[int] | None = None,
    keep_virtual: bool = False,
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""A prompt from a network: the model runs on `[f(E); tokens]`, `E: [n, features]`.

    Acts as `prompt_tuning` does. `f` is an MLP of three layers with ReLUs between them, or an LSTM
    with `num_layers` layers in both directions, followed by an MLP of two layers. Keep the network
    to continue training. `export_prompt` drops it, so that inference costs the same as with prompt
    tuning. With `d` features and width `h`: `n d + d h + h + h^2 + h + h d + d` numbers with the
    MLP; with the LSTM `n d + 8 h (d + h + 2) + (num_layers - 1) 8 h (3 h + 2) + 4 h^2 + 2 h + 2 h d
    + d`. It does not start at the identity. It acts on activations, so `merge` raises.

    Args:
      num_virtual_tokens, targets, places, keep_virtual, dtype: see `prompt_tuning`.
      encoder: `'mlp'` or `'lstm'`.
      hidden: `h`; by default the width of the embedding.
      num_layers: the number of layers of the LSTM.

    Returns:
      A transform whose adapter is `{module path: {'embedding': [n, features], 'layers': [...],
      'lstm': [...]}}`, `'lstm'` only with an LSTM.

    Raises:
      ValueError: a size below 1, an unknown encoder, and see `prompt_tuning`.
      TargetError: from `init`, unless the target is one embedding.

    >>> import flax.linen as nn
    >>> ids = jnp.zeros((1, 2), int)
    >>> class Net(nn.Module):
    ...     peftjax_roles = peftjax.Roles(token_ids='ids')
    ...     @nn.compact
    ...     def __call__(self, ids):
    ...         return nn.Dense(2)(nn.Embed(7, 3, name='embed')(ids))
    >>> model = peftjax.wrap(Net(), Net().init(jax.random.key(0), ids), ids)
    >>> tx = peftjax.p_tuning(num_virtual_tokens=4, targets=r'embed')
    >>> adapter, frozen = tx.init(jax.random.key(0), model)
    >>> peftjax.export_prompt(adapter)['embed']['prompt'].shape
    (4, 3)

    References:
      Liu et al., GPT Understands, Too, 2021 (arXiv:2103.10385), section 3.3. Two bias vectors for
      each direction of the LSTM, and the starts of the layers, are those of torch.
    """
    check_positive(num_virtual_tokens=num_virtual_tokens, num_layers=num_layers)
    if hidden is not None:
        check_positive(hidden=hidden)
    if encoder not in ('mlp', 'lstm'):
        raise ValueError(f"encoder must be 'mlp' or 'lstm', got {encoder!r}")
    order = check_places(places, num_virtual_tokens)

    def start(key: PRNGKeyArray, model: Model) -> dict[str, Entry]:
        site = embedding_of(model, targets, 'p_tuning')
        table_of(model, site)  # raises unless it is an embedding
        first, second, third = jax.random.split(paths.fold_in(key, site.path), 3)
        features, width = site.features, hidden or site.features
        leaves: dict[str, Any] = {
            'embedding': jax.random.normal(first, (num_virtual_tokens, features), dtype)
        }
        sizes = (features, width, width, features)
        if encoder == 'lstm':
            sizes = (2 * width, 2 * width, features)
            inputs = (features, *(num_layers - 1) * (2 * width,))
            keys = jax.random.split(third, num_layers)
            leaves['lstm'] = [
                _init_lstm(k, size, width, dtype) for k, size in zip(keys, inputs, strict=True)
            ]
        keys = jax.random.split(second, len(sizes) - 1)
        leaves['layers'] = [
            _init_dense(k, *sides, dtype)
            for k, sides in zip(keys, itertools.pairwise(sizes), strict=True)
        ]
        return {site.path: Entry('p_tuning', leaves)}

    def rules(adapter: dict[str, Entry], own: Any) -> dict[str, Rule]:
        del own
        check_entries(adapter, 'p_tuning')
        ((path, entry),) = adapter.items()
        prompt = jax.eval_shape(_encode, entry) if is_abstract(entry) else _encode(entry)
        return rules_of(path, prompt, order, keep_virtual)

    return PeftTransform(start, rules)


def export_prompt(adapter: Mapping[str, Entry]) -> dict[str, Entry]:
    """The adapter of `prompt_tuning` that computes the same outputs, without the network.

    Args:
      adapter: an adapter of `p_tuning`.

    Returns:
      An adapter for `prompt_tuning` with the same number of virtual tokens, targets and places.

    >>> entry = peftjax.Entry('p_tuning', {'embedding': jnp.ones((2, 3)), 'layers': []})
    >>> peftjax.export_prompt({'embed': entry})['embed']['prompt'].shape
    (2, 3)

    References:
      Liu et al., GPT Understands, Too, 2021 (arXiv:2103.10385), section 3.3.
    """
    check_entries(adapter, 'p_tuning')
    ((path, entry),) = adapter.items()
    return prompt_at(path, _encode(entry))


def _encode(leaves: Mapping[str, Any]) -> Float[jax.Array, 'n features']:
    x = leaves['embedding']
    for layer in leaves.get('lstm', ()):
        ways = (_lstm(layer['forward'], x), _lstm(layer['backward'], x[::-1])[::-1])
        x = jnp.concatenate(ways, axis=-1)
    for number, layer in enumerate(leaves['layers']):
        x = (jax.nn.relu(x) if number else x) @ layer['kernel'] + layer['bias'][None]
    return x


def _lstm(
    leaves: Mapping[str, Float[jax.Array, '...']], x: Float[jax.Array, 'n width']
) -> Float[jax.Array, 'n hidden']:
    """Hidden states of all inputs, from a zero state."""

    def step(
        state: Any, given: Float[jax.Array, ' gates']
    ) -> tuple[Any, Float[jax.Array, ' hidden']]:
        memory, hidden = state
        gates = given + hidden @ leaves['recurrent'] + leaves['recurrent_bias']
        entry, forget, candidate, exit_ = jnp.split(gates, 4)
        memory = jax.nn.sigmoid(forget) * memory + jax.nn.sigmoid(entry) * jnp.tanh(candidate)
        hidden = jax.nn.sigmoid(exit_) * jnp.tanh(memory)
        return (memory, hidden), hidden

    zeros = jnp.zeros(leaves['recurrent'].shape[0], x.dtype)
    return jax.lax.scan(step, (zeros, zeros), x @ leaves['kernel'] + leaves['bias'][None])[1]


def _init_dense(
    key: PRNGKeyArray, inputs: int, outputs: int, dtype: Any
) -> dict[str, Float[jax.Array, '...']]:
    bound, keys = inputs**-0.5, jax.random.split(key)
    return {
        'kernel': jax.random.uniform(keys[0], (inputs, outputs), dtype, -bound, bound),
        'bias': jax.random.uniform(keys[1], (outputs,), dtype, -bound, bound),
    }


def _init_lstm(key: PRNGKeyArray, inputs: int, width: int, dtype: Any) -> dict[str, Any]:
    bound, (there, back) = width**-0.5, jax.random.split(key)
    shapes = {
        'kernel': (inputs, 4 * width),
        'recurrent': (width, 4 * width),
        'bias': (4 * width,),
        'recurrent_bias': (4 * width,),
    }

    def one(key: PRNGKeyArray) -> dict[str, Float[jax.Array, '...']]:
        return {
            name: jax.random.uniform(paths.fold_in(key, name), shape, dtype, -bound, bound)
            for name, shape in shapes.items()
        }

    return {'forward': one(there), 'backward': one(back)}
