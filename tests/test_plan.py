"""What a step is said to take is what it takes: counted, compiled, and on any mesh."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import peftjax
from configs import lora_sentiment
from peftjax.cli.plan_settings import plans
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.plan import MACHINES, kernels, mesh_for, plan
from peftjax.plan.compiled import largest_that_fits
from peftjax.train import init_state, make_train_step
from peftjax.train.settings import read_settings
from tests import tiny_runs
from tests.compiled import flops

LORA = peftjax.lora(rank=4, targets=r'layers.*/(q|v)_proj')
IDS = {'input_ids': jax.ShapeDtypeStruct((8, 64), jnp.int32)}
SIZES: dict[str, Any] = {
    'vocab_size': 256,
    'hidden_size': 128,
    'intermediate_size': 256,
    'num_hidden_layers': 4,
}
CONFIG = LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=32)


@functools.cache
def _llama(**options):
    module = Llama(CONFIG, **options)
    params = jax.eval_shape(module.init, jax.random.key(0), **IDS)['params']
    return peftjax.wrap(module, params, IDS, config=CONFIG)


def _plan(model, transform=LORA, **options):
    return plan(model, transform, optax.adamw(1e-3), IDS, **options)


def test_what_trains_takes_three_times_its_bytes():
    found = _plan(_llama())
    trainable = 4 * found.trainable
    assert found.adapter == trainable
    assert found.gradients + found.optimizer + found.adapter == pytest.approx(4 * trainable, 0.01)
    scales = 2 * 4  # One float32 of each target is frozen too.
    assert found.weights == 4 * found.parameters + scales


def test_a_leaf_that_trains_is_held_once():
    found = _plan(_llama(), peftjax.full())
    assert found.weights == 0
    assert found.trainable == found.parameters
    some = _plan(_llama(), peftjax.select(r'.*/up_proj/kernel'))
    assert some.weights == 4 * (some.parameters - some.trainable)
    assert some.adapter == some.gradients == 4 * some.trainable == 4 * 4 * 128 * 256


@pytest.mark.parametrize('dtype', [jnp.float32, None], ids=['float32', "the model's"])
@pytest.mark.parametrize('targets', [r'.*', r'.*/up_proj/kernel'], ids=['full', 'select'])
def test_trained_copies_of_a_bfloat16_model_are_counted_as_they_are_held(targets, dtype):
    half = _llama(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion('standard'):  # JAX's own attention widens its scores' gradient.
        found = _plan(half, peftjax.select(targets, dtype=dtype), compiled=True)
    width = 2 if dtype is None else 4
    assert found.weights == 2 * (found.parameters - found.trainable)
    assert found.adapter == found.gradients == width * found.trainable
    assert found.optimizer == 2 * found.adapter + 4
    assert found.compiled is not None
    arguments = found.weights + found.adapter + found.optimizer
    assert found.compiled.arguments == pytest.approx(arguments, rel=0.01)


def test_projections_that_sites_share_weigh_once_on_one_device():
    looped = _llama(scan=False)
    tx = peftjax.vera(rank=4, targets=r'layers.*/(up|gate)_proj')
    shared = 4 * 4 * (128 + 256)
    found = _plan(looped, tx)
    assert found.weights == 4 * found.parameters + shared
    spread = _plan(looped, tx, mesh=mesh_for(data=8))
    assert spread.weights == 4 * found.parameters + 2 * 4 * shared


def test_numbers_of_a_method_that_do_not_train_are_weights():
    """RandLoRA's bases are random, and held beside the model, not in the program."""
    tx = peftjax.randlora(rank=4, targets=r'layers.*/up_proj')
    found = _plan(_llama(), tx, compiled=True)
    _, frozen = jax.eval_shape(tx.init, jax.random.key(0), _llama())
    numbers = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen.own))
    assert numbers > 4 * 4 * (128 + 256)
    assert found.weights == 4 * found.parameters + numbers
    assert found.compiled is not None
    arguments = found.weights + found.adapter + found.optimizer
    assert found.compiled.arguments == pytest.approx(arguments, rel=0.01)


@pytest.mark.sampled
@pytest.mark.parametrize('remat', [None, 'full'])
@pytest.mark.parametrize('transform', [LORA, peftjax.full()], ids=['lora', 'full'])
def test_products_are_those_the_compiler_counts(transform, remat):
    # The compiler counts the body of a loop once, so that it is asked about a model without one;
    # what it counts besides products is a few per cent.
    looped, scanned = (_llama(scan=scan, remat=remat) for scan in (False, True))
    found, again = _plan(looped, transform), _plan(scanned, transform)
    # A looped model carries no gradient below its first adapted layer.
    assert found.flops <= again.flops <= 1.03 * found.flops
    predict = peftjax.adapt(looped, transform)

    def loss(adapter, frozen, batch, key):
        del key
        logits = predict(adapter, frozen, **batch)
        labels = jnp.zeros(logits.shape[:-1], int)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}

    def start(params):
        adapter, frozen = transform.init(jax.random.key(0), looped.replace(params=params))
        return init_state(adapter, optax.adamw(1e-3), jax.random.key(0)), frozen

    state, frozen = jax.eval_shape(start, looped.params)
    step = jax.jit(make_train_step(loss, optax.adamw(1e-3)))
    counted = flops(step.lower(state, frozen, IDS))
    assert found.flops <= counted <= 1.12 * found.flops


def test_activations_grow_with_the_batch_and_shrink_with_rematerialisation():
    whole, kept = _plan(_llama()), _plan(_llama(remat='full'))
    assert kept.activations < 0.4 * whole.activations
    half = {'input_ids': jax.ShapeDtypeStruct((4, 64), jnp.int32)}
    smaller = plan(_llama(), LORA, optax.adamw(1e-3), half)
    assert smaller.activations == pytest.approx(whole.activations / 2, rel=0.02)
    assert smaller.fixed == whole.fixed


def test_the_compiler_agrees_on_arguments_and_needs_what_was_counted():
    found = _plan(_llama(), compiled=True)
    arguments = found.weights + found.adapter + found.optimizer
    assert found.compiled is not None
    assert found.compiled.arguments == pytest.approx(arguments, rel=0.01)
    assert 0.5 * found.activations < found.compiled.temporary < 1.2 * found.activations
    assert found.total == found.compiled.peak >= arguments + found.compiled.temporary


def test_a_mesh_shares_the_base_and_the_batch():
    alone, shared = _plan(_llama()), _plan(_llama(), mesh=mesh_for(fsdp=8))
    assert shared.weights == pytest.approx(alone.weights / 8, rel=0.02)  # norms are everywhere
    assert shared.activations == pytest.approx(alone.activations / 8, rel=0.01)
    assert (shared.devices, shared.flops) == (8, alone.flops)
    here = _plan(_llama(), mesh=mesh_for('here', fsdp=4, tensor=2), compiled=True)
    assert here.compiled is not None
    counted = here.weights + here.adapter + here.optimizer
    assert here.compiled.arguments == pytest.approx(counted, rel=0.02)
    with pytest.raises(ValueError, match=r'batches of \[8\]; .* multiple of the 16 groups'):
        _plan(_llama(), mesh=mesh_for(data=16))


def test_the_largest_batch_fits_and_one_group_more_does_not():
    machine = MACHINES['v5e']._replace(memory=40e6)
    found = _plan(_llama(), machine=machine)
    assert found.largest_batch is not None
    for batch, fits in ((found.largest_batch, True), (found.largest_batch + 1, False)):
        ids = {'input_ids': jax.ShapeDtypeStruct((batch, 64), jnp.int32)}
        one = plan(_llama(), LORA, optax.adamw(1e-3), ids, machine=machine)
        assert one.fits is fits
    assert _plan(_llama(), machine=machine._replace(memory=1e3)).largest_batch == 0


@pytest.mark.parametrize('at', [1, 2, 50, 400])
@pytest.mark.parametrize('memory', [9.0, 30.0, 100.0, 333.0, 1000.0])
def test_the_largest_number_that_fits_is_near_and_never_above(at, memory):
    def peak(n):
        return max(20 + 2 * n, 12 + 3 * n)

    asked = []

    def dear(n):
        asked.append(n)
        return peak(n)

    found = largest_that_fits(dear, memory, at=at, found=peak(at), fixed=5)
    best = max((n for n in range(1, 2000) if peak(n) <= memory), default=0)
    assert len(asked) <= 3
    assert 0.8 * best - 1 <= found <= best


@pytest.mark.parametrize(
    ('ends', 'fixed', 'each', 'memory', 'at', 'largest'),
    [
        (6, 0, 10, 100, 4, 6),
        (6, 0, 10, 100, 9, 6),
        (4, 10, 5, 40, 8, 4),
        (18, 10, 5, 100, 2, 18),
        (30, 10, 5, 100, 2, 18),
        (1, 10, 5, 100, 4096, 1),
        (0, 10, 5, 100, 4096, 0),
    ],
)
@pytest.mark.parametrize('beside', [-5, 0, 5])
def test_where_the_compiler_gives_up_the_largest_number_is_found(
    ends, fixed, each, memory, at, largest, beside
):
    asked = []

    def peak(n):
        asked.append(n)
        return math.inf if n > ends else fixed + each * n

    found = peak(at)
    asked.clear()
    guessed = max(fixed + beside, 0)
    assert largest_that_fits(peak, memory, at=at, found=found, fixed=guessed) == largest
    assert len(asked) <= 6


def test_a_first_guess_that_is_far_off_does_not_ask_for_millions():
    asked = []

    def peak(n):
        asked.append(n)
        return 20.0 + n

    assert largest_that_fits(peak, 1000, at=1, found=21.0, fixed=30) == 980
    assert max(asked) < 10_000


def test_an_unknown_topology_is_an_error():
    with pytest.raises(ValueError, match=r"no topology 'v99:1x1', or is not installed.*A100, H100"):
        mesh_for('v99:1x1')


@pytest.mark.parametrize('text', ['H100', 'H100:', 'H100:0', 'H100:8x', 'H100:2x0', 'H100:1x2x8'])
def test_gpus_that_do_not_read_as_a_topology_are_an_error(text):
    with pytest.raises(ValueError, match='write for example H100:8, or H100:2x8'):
        mesh_for(text)


def test_a_mesh_without_devices_has_no_compiler():
    with pytest.raises(ValueError, match='give mesh_for a topology'):
        _plan(_llama(), mesh=mesh_for(fsdp=8), compiled=True)


def test_kernels_are_counted_by_name_and_collectives_once_each():
    calls = ('__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmax', 'tpu_custom_call', 'AllocateBuffer')
    program = '\n'.join(
        f'  %splash.{i} = s8[2] custom-call(), custom_call_target="{name}"'
        for i, name in enumerate(calls)
    )
    program += '\n%f = fusion(), backend_config={"kind":"__triton_gemm"}'
    program += '\n%a = all-gather-start(%x), channel_id=1\n%b = all-gather-done(%a)'
    program += '\n%c = all-reduce(%x), channel_id=2, x={}\n%d = all-reduce(%x), channel_id=2, x={}'
    expected = {'__cudnn$fmhaSoftmax': 2, '__triton_gemm': 1, 'splash': 1}
    assert kernels(program) == expected | {'all-gather': 1, 'all-reduce': 1}


def test_a_config_is_planned_from_its_shapes_alone(tmp_path):
    config: Any = lora_sentiment.get_config()
    source = tiny_runs.checkpoint(tmp_path / 'bert', 'tiny_bert')
    (source / 'model.safetensors').unlink()
    config.model.source, config.data.source = str(source), 'nowhere'
    config.data.lengths = (8,)
    found = plans(read_settings(config), machine='v5e')
    assert list(found) == ['lora+select', 'full']
    assert found['lora+select'].trainable < found['full'].trainable == found['full'].parameters
    assert all(each.fits for each in found.values())
