"""Trained adapters, random deltas, and the rules of merging, for the tests of them."""

import jax
import jax.numpy as jnp

import peftjax
from peftjax import merging, testing
from tests.contract_models import MODELS
from tests.rows import METHODS

FORM = 'linen scanned'


def trained(name, seed=0, form=FORM):
    row, model = METHODS[name], MODELS[form]()
    tx = row.maker(model)(row.targets)
    adapter, frozen = tx.init(jax.random.key(seed), model)
    frozen = frozen._replace(params=peftjax.dequantize(frozen.params))  # Of LoftQ alone.
    return model, tx, testing.perturb(adapter, seed + 1), frozen


def far(first, second):
    """The largest difference of two trees, relative to the largest number of the second."""
    pairs = list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    size = max(float(jnp.abs(b).max()) for _, b in pairs)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs) / max(size, 1e-30)


def random_deltas(count, seed=0, ranks=(2, 3, 1, 2)):
    model = MODELS[FORM]()
    deltas = []
    for i in range(count):
        tx = peftjax.lora(rank=ranks[i], alpha=3.0, targets=r'layers.*/(up|down)')
        adapter, frozen = tx.init(jax.random.key(i), model)
        deltas.append(merging.delta(model, tx, testing.perturb(adapter, seed + 7 * i, 0.3), frozen))
    return deltas


RULES = {
    'average': merging.average,
    'sum': lambda deltas: merging.weighted_sum(deltas, 0.4),
    'ties': lambda deltas: merging.ties(deltas, density=0.4),
    'ties, each tensor': lambda deltas: merging.ties(deltas, density=0.4, trim='tensor'),
    'breadcrumbs': lambda deltas: merging.breadcrumbs(deltas, density=0.5, gamma=0.1),
    'breadcrumbs, elected': lambda deltas: merging.breadcrumbs(deltas, density=0.5, elect=True),
    'multi_slerp': merging.multi_slerp,
    'karcher': merging.karcher_mean,
    'karcher, model': lambda deltas: merging.karcher_mean(deltas, per='model'),
    'model_stock': merging.model_stock,
    'sce': lambda deltas: merging.sce(deltas, density=0.5),
    'core average': merging.core_space(merging.average),
    'core ties': merging.core_space(lambda cores: merging.ties(cores, density=0.3)),
}
SPANNED = ('average', 'sum', 'multi_slerp', 'karcher', 'karcher, model', 'model_stock')


def vector(values):
    return merging.delta_of({'w': jnp.asarray(values)}, {'w': jnp.zeros(len(values))})
