"""Every method keeps the whole contract on every form of model, and composes with every other."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import peftjax
from peftjax import testing
from tests.contract_models import IDS, MODELS
from tests.rows import METHODS

# Every law on every method, on one form of model: most on looped layers, every fourth on scanned
# ones, unless it says what it costs, which the compiler counts on looped layers alone. The forms
# take turns, so each has its share of the methods: Flax's two interfaces, rematerialised layers.
# Every twelfth method is tried in half precision too. What has no turn is slow, and so are other
# options of a method that has a row.
PAIR_FORM = 'linen scanned'
LOOPED = ['linen looped', 'nnx looped']
LOW = 'linen scanned, bfloat16'
SCANNED = [form for form in MODELS if form not in (*LOOPED, PAIR_FORM, LOW)]
VARIANT_FORMS = ['linen looped', 'nnx scanned, rematerialised']


def _forms():
    """(method, form) of all, those that are left for `-m slow` marked so."""
    number = 0
    for name, row in METHODS.items():
        if row.variant:
            for form in VARIANT_FORMS:
                yield pytest.param(name, form, marks=pytest.mark.slow)
            continue
        turns = LOOPED if number % 4 or row.forward_flops is not None else SCANNED
        turn = {turns[number // 4 % len(turns)]} | ({LOW} if number % 12 == 0 else set())
        for form in (*LOOPED, *SCANNED, LOW):
            yield (name, form) if form in turn else pytest.param(name, form, marks=pytest.mark.slow)
        number += 1


CASES = list(_forms())


def _pairs():
    """Every two methods, in one order or the other; one in twenty is not slow.

    By default a quarter of those run, by the mark `sampled`.
    """
    distinct = [name for name, row in METHODS.items() if not row.variant]
    for (i, first), (j, second) in itertools.combinations(enumerate(distinct), 2):
        pair = (second, first) if (i + j) // 20 % 2 else (first, second)
        yield pair if (i + j) % 20 == 0 else pytest.param(*pair, marks=pytest.mark.slow)


PAIRS = list(_pairs())


def _case(method, form, roundtrip=None):
    row = METHODS[method]
    low = 'bfloat16' in form
    scanned = 'scanned' in form  # The compiler's count takes the body of a scan once.
    model = MODELS[form]()
    return testing.Case(
        make=row.maker(model),
        targets=row.targets,
        model=model,
        inputs={'ids': IDS},
        fewer_targets=row.fewer_targets,
        identity=row.identity,
        mergeable=row.mergeable,
        tolerance=3e-2 if low else 1e-5,
        parameters=row.parameters,
        dense=row.dense,
        forward_flops=None if scanned else row.forward_flops,
        roundtrip=roundtrip,
    )


@pytest.mark.parametrize(('method', 'form'), CASES)
def test_every_law_holds(method, form, tmp_path):
    def roundtrip(adapter):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / 'adapter', adapter)
            checkpointer.wait_until_finished()
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, adapter)
            return checkpointer.restore(tmp_path / 'adapter', abstract)

    testing.check(_case(method, form, roundtrip))


@pytest.mark.sampled
@pytest.mark.parametrize(('first', 'second'), PAIRS)
def test_methods_compose(first, second):
    testing.check_composition(_case(first, PAIR_FORM), _case(second, PAIR_FORM))


@pytest.mark.parametrize('form', [PAIR_FORM, LOW])
def test_a_method_that_reads_the_weight_follows_one_with_a_complex_table(form):
    """HiRA reads the weight that C3A has changed, and C3A's spectrum makes no weight complex."""
    testing.check_composition(_case('c3a', form), _case('hira', form))


def test_the_laws_catch_a_wrong_method():
    """A contract that cannot fail proves nothing: each broken method must trip its law."""
    good = METHODS['lora']
    wrong_route = peftjax.weightwise(
        lambda key, matrix, site: {'scale': jnp.ones(matrix.shape[1])},
        lambda leaves, matrix: matrix * leaves['scale'][None],
        lambda leaves, use: use.forward(use.x) * leaves['scale'][None] ** 2,
        targets=good.targets,
        name='wrong_route',
    )
    case = dataclasses.replace(_case('lora', 'linen looped'), make=lambda _: wrong_route)
    with pytest.raises(AssertionError, match='differs'):
        testing.routes_agree(case)
    with pytest.raises(AssertionError, match='did not raise'):
        testing.wrong_target_raises(case)
    with pytest.raises(AssertionError, match='formula'):
        testing.counts_match(dataclasses.replace(_case('lora', 'linen looped'), parameters=7))
    merging = peftjax.weightwise(
        lambda key, matrix, site: {'scale': jnp.ones(matrix.shape[1])},
        lambda leaves, matrix: matrix * leaves['scale'][None],
        targets=good.targets,
        name='merging',
    )
    with pytest.raises(AssertionError, match='shape of a kernel'):
        testing.dense_only_if_said(dataclasses.replace(case, make=lambda _: merging))
    with pytest.raises(AssertionError, match='write dense=False'):
        testing.dense_only_if_said(dataclasses.replace(_case('lora', 'linen looped'), dense=True))
    with pytest.raises(AssertionError, match='formula'):
        testing.forward_cost_matches(
            dataclasses.replace(_case('lora', 'linen looped'), forward_flops=10.0)
        )
