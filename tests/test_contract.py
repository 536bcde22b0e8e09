"""Every method keeps the whole contract on every form of model, and composes with every other."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import peftjax
from peftjax import testing
from tests.contract_models import HIDDEN, IDS, LAYERS, MODELS, VOCABULARY, WIDTH

MATRICES = r'layers.*/(attention/.*|up|down)'
TOKENS = IDS.size


@dataclasses.dataclass(frozen=True)
class Row:
    """A method and what the contract is told of it."""

    make: object
    targets: object
    fewer_targets: object
    parameters: int
    identity: float | None = 0.0
    mergeable: bool = True
    forward_flops: float | None = None


def _scale_outputs(targets):
    """A method of one's own, without a route for training: the merged matrix is formed."""
    return peftjax.weightwise(
        lambda key, matrix, site: {'scale': jnp.ones(matrix.shape[1])},
        lambda leaves, matrix, path: (matrix * leaves['scale']).astype(matrix.dtype),
        targets=targets,
    )


def _lora_parameters(rank):
    return LAYERS * rank * (4 * 2 * WIDTH + 2 * (WIDTH + HIDDEN))


_BIASES = LAYERS * (4 * WIDTH + WIDTH + HIDDEN + WIDTH)
_BASE = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN + WIDTH) + _BIASES + VOCABULARY * WIDTH

METHODS = {
    'lora': Row(
        make=lambda targets: peftjax.lora(rank=2, alpha=4, dropout=0.1, targets=targets),
        targets=MATRICES,
        fewer_targets=r'layers.*/up',
        parameters=_lora_parameters(2),
        # Two products of 2 T r (in + out) in all, and scaling and adding the result.
        forward_flops=2 * TOKENS * _lora_parameters(2) + 2 * TOKENS * LAYERS * (5 * 8 + 16),
    ),
    'lora on a tied embedding': Row(
        make=lambda targets: peftjax.lora(rank=2, targets=targets),
        targets=(r'embed', MATRICES),
        fewer_targets=r'embed',
        parameters=_lora_parameters(2) + 2 * (VOCABULARY + WIDTH),
    ),
    'rslora with patterns': Row(
        make=lambda targets: peftjax.lora(
            rank=4,
            rslora=True,
            targets=targets,
            rank_pattern={r'.*/up': 3},
            alpha_pattern={r'.*/down/kernel': 9},
        ),
        targets=r'layers.*/(up|down)',
        fewer_targets=r'layers.*/down',
        parameters=LAYERS * (4 + 3) * (WIDTH + HIDDEN),
    ),
    'bitfit': Row(
        make=lambda targets: peftjax.select(targets),
        targets=r'.*/bias',
        fewer_targets=r'.*/up/bias',
        parameters=_BIASES,
    ),
    'full': Row(
        make=lambda targets: peftjax.select(targets),
        targets=r'.*',
        fewer_targets=r'.*/kernel',
        parameters=_BASE,
    ),
    'bottleneck': Row(
        make=lambda targets: peftjax.bottleneck(size=3, targets=targets),
        targets=r'layers.*/(attention|down)',
        fewer_targets=r'layers.*/attention',
        parameters=LAYERS * 2 * (2 * WIDTH * 3 + 3 + WIDTH),
        identity=1e-2,  # Houlsby et al. start near the identity, not at it.
        mergeable=False,
    ),
    'weightwise without a route': Row(
        make=_scale_outputs,
        targets=r'layers.*/(up|down)',
        fewer_targets=r'layers.*/up',
        parameters=LAYERS * (HIDDEN + WIDTH),
    ),
}


@functools.cache
def _model(form):
    return MODELS[form]()


def _case(method, form, roundtrip=None):
    row = METHODS[method]
    low = 'bfloat16' in form
    scanned = 'scanned' in form  # The compiler's count takes the body of a scan once.
    return testing.Case(
        make=row.make,
        targets=row.targets,
        model=_model(form),
        inputs={'ids': IDS},
        fewer_targets=row.fewer_targets,
        identity=row.identity,
        mergeable=row.mergeable,
        tolerance=3e-2 if low else 1e-5,
        parameters=row.parameters,
        forward_flops=None if scanned else row.forward_flops,
        roundtrip=roundtrip,
    )


@pytest.mark.parametrize('form', MODELS)
@pytest.mark.parametrize('method', METHODS)
def test_every_law_holds(method, form, tmp_path):
    def roundtrip(adapter):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / 'adapter', adapter)
            checkpointer.wait_until_finished()
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, adapter)
            return checkpointer.restore(tmp_path / 'adapter', abstract)

    testing.check(_case(method, form, roundtrip))


@pytest.mark.parametrize('form', ['linen scanned', 'nnx looped'])
@pytest.mark.parametrize(('first', 'second'), list(itertools.permutations(METHODS, 2)))
def test_methods_compose(first, second, form):
    testing.check_composition(_case(first, form), _case(second, form))


def test_the_laws_catch_a_wrong_method():
    """A contract that cannot fail proves nothing: each broken method must trip its law."""
    good = METHODS['lora']
    wrong_route = peftjax.weightwise(
        lambda key, matrix, site: {'scale': jnp.ones(matrix.shape[1])},
        lambda leaves, matrix, path: matrix * leaves['scale'],
        lambda leaves, use, path: use.base(use.x) * leaves['scale'] ** 2,
        targets=good.targets,
    )
    case = dataclasses.replace(_case('lora', 'linen looped'), make=lambda _: wrong_route)
    with pytest.raises(AssertionError, match='differs'):
        testing.routes_agree(case)
    with pytest.raises(AssertionError, match='did not raise'):
        testing.wrong_target_raises(case)
    with pytest.raises(AssertionError, match='formula'):
        testing.counts_match(dataclasses.replace(_case('lora', 'linen looped'), parameters=7))
    with pytest.raises(AssertionError, match='formula'):
        testing.forward_cost_matches(
            dataclasses.replace(_case('lora', 'linen looped'), forward_flops=10.0)
        )
