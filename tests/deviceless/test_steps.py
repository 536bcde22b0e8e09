"""What the compilers of GPUs and TPUs make of a LoRA step: no array that should not be there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from peftjax.plan import kernels
from tests.compiled import text
from tests.deviceless.hlo import Array, gathered, held, products
from tests.deviceless.steps import KEYS, LAYERS, MATRICES, TOKENS, WIDTH, compiled_step, devices_of

pytestmark = pytest.mark.deviceless
FORWARD = {'H100': '__cudnn$fmhaSoftmax', 'v5e': 'splash_mha_fwd_residuals'}
BACKWARD = {'H100': '__cudnn$fmhaSoftmaxBackward', 'v5e': 'splash_mha_dkv_no_residuals'}
ONE_GPU, ONE_GPU_NF4, GPUS = ('H100:1', None), ('H100:1', 'nf4'), ('H100:8', None)
TPUS_NF4 = ('v5e:2x2', 'nf4')
STEPS = [ONE_GPU, ONE_GPU_NF4, GPUS, TPUS_NF4]
BLOCK = 256  # queries that the plain route takes at a time


def _is_scores(array: Array) -> bool:
    sizes = [size for size in array.shape if size in (TOKENS, BLOCK)]
    return sizes.count(TOKENS) >= 2 or {TOKENS, BLOCK} <= set(sizes)


def _dtypes_of_products(program: str) -> set[str]:
    return {array.dtype for operands in products(program) for array in operands}


def _is_base(array: Array) -> bool:
    """Whether an array has the sides of a base matrix, of one layer or of all."""
    sides = tuple(size for size in array.shape if size not in (1, LAYERS))
    return sides in MATRICES or sides[::-1] in MATRICES


@pytest.mark.parametrize(('topology', 'quantize'), STEPS)
def test_attention_is_fused_forward_and_backward(topology, quantize):
    program = compiled_step(topology, quantize)
    found, where = kernels(program), topology.partition(':')[0]
    assert found.get(FORWARD[where], 0) >= 1 and found.get(BACKWARD[where], 0) >= 1, found
    assert not list(filter(_is_scores, held(program)))


@pytest.mark.parametrize(('topology', 'quantize'), STEPS)
def test_every_product_is_in_bfloat16(topology, quantize):
    assert _dtypes_of_products(compiled_step(topology, quantize)) == {'bf16'}


@pytest.mark.parametrize(('topology', 'quantize'), [ONE_GPU_NF4, TPUS_NF4])
def test_no_copy_of_a_4_bit_base_is_held_but_of_the_layer_at_work(topology, quantize):
    base = {array for array in held(compiled_step(topology, quantize)) if _is_base(array)}
    assert 'f32' not in {array.dtype for array in base}
    assert not [array for array in base if array.dtype == 'bf16' and LAYERS in array.shape]


@pytest.mark.parametrize(('topology', 'quantize'), [GPUS, TPUS_NF4])
def test_no_gather_brings_the_base_of_all_layers(topology, quantize):
    found = gathered(compiled_step(topology, quantize))
    assert found
    assert not [array for array in found if LAYERS in array.shape]


def test_the_checks_see_what_they_look_for():
    mesh = devices_of('H100:8')

    def array(shape, dtype, *axes):
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def plain(x, codes, stack):
        scores = jax.nn.softmax(x @ x.T, axis=-1)
        base = jax.lax.optimization_barrier(codes.astype(jnp.float32))
        whole = jax.lax.with_sharding_constraint(stack, NamedSharding(mesh, PartitionSpec()))
        return scores @ x, x.astype(jnp.float32) @ base, jnp.sin(whole).sum()

    x = array((TOKENS, WIDTH), jnp.bfloat16)
    codes = array((WIDTH, KEYS), jnp.int8)
    stack = array((LAYERS, WIDTH, KEYS), jnp.bfloat16, None, 'fsdp')
    program = text(jax.jit(plain).lower(x, codes, stack).compile())
    arrays = held(program)
    assert list(filter(_is_scores, arrays))
    assert 'f32' in {each.dtype for each in arrays if _is_base(each)}
    assert _dtypes_of_products(program) == {'bf16', 'f32'}
    assert [each for each in gathered(program) if LAYERS in each.shape]
