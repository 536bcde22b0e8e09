"""LLaMA-Adapter: trained prompts that attention reads through a gate that starts at zero."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from peftjax.core import paths
from peftjax.core.entries import Entry, check_entries
from peftjax.core.errors import AdapterError
from peftjax.core.layout import Layout
from peftjax.core.model import Model
from peftjax.core.patterns import matcher
from peftjax.core.rules import ModuleRule
from peftjax.core.sites import ModuleSite
from peftjax.core.transform import PeftTransform, described
from peftjax.core.use import ModuleUse
from peftjax.methods.blocks import check_positive
from peftjax.methods.prompts.cores import check_core


class Leaves(TypedDict):
    prompt: Float[jax.Array, '*stack n width']
    gate: Float[jax.Array, '*stack']


class Prepared(TypedDict):
    gate: Float[jax.Array, '*stack']
    key: Float[jax.Array, '*stack n out']
    value: Float[jax.Array, '*stack n out']


@described
def adaption_prompt(
    *,
    num_virtual_tokens: int,
    targets: paths.Targets,
    key: str = 'k_proj',
    value: str = 'v_proj',
    dtype: Any = jnp.float32,
) -> PeftTransform:
    r"""Zero-init attention: `h' = h + g softmax(Q (P W_k)^T / sqrt(H)) P W_v`.

    Acts on attention cores: modules called with `query: [B, T, N, H]` and keys and values `[B, S,
    K, H]`, which return `h: [B, T, N, H]`. A prompt `P: [n, features]` and one number `g` train for
    each core. `W_k` and `W_v` (and their biases) are the frozen projections beside the core,
    without the changes that other methods make to them. The queries are those of the core, after
    RoPE if the model uses it; the keys of the prompt are not rotated. At the start `g = 0`, the
    identity, and `P` is normal. It trains `n features + 1` numbers for each core. In the forward
    pass it adds `4 T n N H + 6 T n N` FLOPs for each core and example, and `4 n features K H` for
    each core. It acts on activations, so `merge` raises.

    Args:
      num_virtual_tokens: `n`.
      targets: regular expressions, full match on paths of attention cores; the paper takes the
        topmost layers.
      key, value: regular expressions for the modules that project features to keys and values,
        full match on their paths below the module that contains the core.
      dtype: of the trained arrays; the computation runs in the model's dtype.

    Returns:
      A transform whose adapter is `{module path: {'prompt': [*stack, n, features], 'gate':
      [*stack]}}`.

    Raises:
      ValueError: a size below 1.
      TargetError: from `init`, if a pattern matches no module, or a module that is not an attention
        core with these projections beside it.

    >>> import flax.linen as nn
    >>> class Core(nn.Module):
    ...     def __call__(self, query, key, value):
    ...         return jax.nn.dot_product_attention(query, key, value)
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         split = lambda name: nn.DenseGeneral((2, 4), name=name)(x)
    ...         return Core(name='core')(split('q_proj'), split('k_proj'), split('v_proj'))
    >>> x = jnp.ones((1, 3, 8))
    >>> variables, roles = Net().init(jax.random.key(0), x), peftjax.Roles(attention='core')
    >>> model = peftjax.wrap(Net(), variables, x, roles=roles)
    >>> tx = peftjax.adaption_prompt(num_virtual_tokens=5, targets=r'core')
    >>> tx.init(jax.random.key(0), model)[0]['core']['prompt'].shape
    (5, 8)

    References:
      Zhang et al., LLaMA-Adapter, 2023 (arXiv:2303.16199), sections 3.1 and 3.2. One gate for all
      heads and no `tanh` around it, as in Hugging Face's peft.
    """
    check_positive(num_virtual_tokens=num_virtual_tokens)

    def start(random: PRNGKeyArray, model: Model) -> dict[str, Entry]:
        found = {}
        for site in model.sites.match_modules(targets):
            layout = _layout(site, model, key, value)
            shape = (*site.stack, num_virtual_tokens, layout.inputs)
            prompt = jax.random.normal(paths.fold_in(random, site.path), shape, dtype)
            arrays = {'prompt': prompt, 'gate': jnp.zeros(site.stack, dtype)}
            found[site.path] = Entry('adaption_prompt', arrays, layout)
        return found

    def rules(adapter: dict[str, Entry], own: Any) -> dict[str, ModuleRule]:
        del own
        check_entries(adapter, 'adaption_prompt')
        found = {}
        for path, entry in adapter.items():
            assert entry.layout is not None
            found[path] = ModuleRule(dict(entry), _attend, prepare(path, entry.layout))
        return found

    def prepare(path: str, layout: Layout) -> Callable[[Any, Mapping[str, Any]], Any]:
        beside = paths.parent(path)

        def projected(leaves: Leaves, params: Mapping[str, Any]) -> Prepared:
            made = {}
            for role, name in (('key', key), ('value', value)):
                (module,) = _modules(beside, name, params)
                matrix = layout.to_matrix(params[f'{module}/kernel'])
                rows = leaves['prompt'].astype(matrix.dtype) @ matrix
                bias = params.get(f'{module}/bias')
                if bias is not None:
                    rows = rows + bias.reshape(*layout.stack_shape, 1, layout.outputs)
                made[role] = rows
            return {'gate': leaves['gate'], 'key': made['key'], 'value': made['value']}

        return projected

    return PeftTransform(start, rules)


def _attend(leaves: Prepared, use: ModuleUse) -> Float[jax.Array, 'B L *features']:
    attention = use.attention
    if attention is None:
        raise AdapterError(
            f'adaption_prompt acts on attention cores, but a module that returns '
            f'{use.output.shape} {use.output.dtype} is not one. Was it made for another model?'
        )
    query, heads = attention.query, attention.key.shape[2:]
    prompts = (
        jnp.broadcast_to(rows, (len(query), *rows.shape)).astype(query.dtype)
        for rows in (leaves[name].reshape(-1, *heads) for name in ('key', 'value'))
    )
    seen = attention.core(query, *prompts, None, None)
    return use.output + leaves['gate'].astype(query.dtype) * seen.reshape(use.output.shape)


def _layout(site: ModuleSite, model: Model, key: str, value: str) -> Layout:
    """The layout of the frozen projections, which must be the same for both."""
    check_core(site)
    weights = model.sites.weights
    found = [_modules(paths.parent(site.path), name, weights) for name in (key, value)]
    layouts = [weights[f'{each[0]}/kernel'].layout if len(each) == 1 else None for each in found]
    if layouts[0] is None or layouts[0] != layouts[1] or layouts[0].stack_shape != site.stack:
        near = paths.nearby(f'{paths.parent(site.path)}/{key}/kernel', weights)
        raise paths.TargetError(
            f'key={key!r} and value={value!r} find {found[0]} and {found[1]} beside the core '
            f'{site.path!r}, but each must find one projection, both of one shape{near}'
        )
    return layouts[0]


def _modules(beside: str, name: str, leaves: Iterable[str]) -> list[str]:
    """Modules with a kernel whose path below `beside` is `name`."""
    pattern = matcher(f'{re.escape(beside)}/({name})/kernel'.removeprefix('/'))
    return [paths.parent(leaf) for leaf in leaves if pattern.fullmatch(leaf)]
