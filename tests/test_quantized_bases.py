"""Quantised bases: from files, in memory, in text, and beside what starts from them."""

import functools
import math

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import peftjax
import peftjax.train
from peftjax.core import paths
from peftjax.core.quantized import is_quantized
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from tests.checkpoint_files import GOLDEN, golden, write_folder, write_gguf
from tests.compiled import shapes
from tests.contract_models import MODELS
from tests.oracle.cases import stored
from tests.structures.entry import normal_like


@pytest.mark.sampled
@pytest.mark.parametrize('kind', ['Q4_0', 'Q4_1', 'Q8_0'])
def test_a_gguf_file_stays_as_it_is_stored(kind, tmp_path):
    path = _gguf(tmp_path / 'model.gguf', kind)
    plain, small = peftjax.load(path), peftjax.load(path, quantize='stored')
    jax.tree.map(np.testing.assert_array_equal, peftjax.dequantize(small.params), plain.params)
    packed = {p: leaf for p, leaf in paths.flatten(small.params).items() if is_quantized(leaf)}
    assert len(packed) == 9  # of the layers, the table and the head
    assert {leaf.scheme.name for leaf in packed.values()} == {kind.lower()}
    assert all(leaf.nbytes < 0.27 * 4 * leaf.size for leaf in packed.values())
    abstract = peftjax.load(path, quantize='stored', abstract=True).params
    assert jax.tree.structure(abstract) == jax.tree.structure(small.params)
    for mine, theirs in zip(jax.tree.leaves(abstract), jax.tree.leaves(small.params), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    ids = jnp.asarray([[1, 2, 3, 4]])
    expected = plain.apply(plain.params, input_ids=ids)
    found = small.apply(small.params, input_ids=ids)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def _gguf(path, kind):
    """A file of a small Llama, with its matrices in `kind`."""
    config, weights, _, _ = golden('llama')
    sizes = {16: 64, 24: 96, 8: 32, 32: 32}  # hidden, feed-forward, key-value, vocabulary
    config |= {'hidden_size': 64, 'intermediate_size': 96, 'head_dim': 16}
    draw = np.random.default_rng(0).standard_normal
    weights = {
        name: draw([sizes[size] for size in tensor.shape], np.float32)
        for name, tensor in weights.items()
    }
    kind = gguf.GGMLQuantizationType[kind]
    rows = {}

    def change(name, values):
        if values.ndim == 2:
            rows[name] = values
            return None
        return values

    def extend(writer):
        for name, values in rows.items():
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    return write_gguf(path, config, weights, change=change, extend=extend)


def test_a_checkpoint_is_quantised_as_it_is_read(tmp_path):
    config, weights, inputs, _ = golden('llama')
    folder = write_folder(tmp_path, config, weights)
    whole = peftjax.load(folder)
    scheme = peftjax.NF4(block=8)
    mesh = peftjax.make_mesh(fsdp=4, tensor=2)
    for scan in (True, False):
        expected = peftjax.quantize(peftjax.load(folder, scan=scan), scheme).params
        found = peftjax.load(folder, scan=scan, quantize=scheme).params
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    small = peftjax.load(folder, quantize=scheme, mesh=mesh)
    where = jax.tree.leaves(peftjax.shardings(small, mesh))
    assert [leaf.sharding for leaf in jax.tree.leaves(small.params)] == where
    gate = small.params['layers']['mlp']['gate_proj']['kernel'].arrays
    assert gate['codes'].sharding.spec == PartitionSpec(None, 'tensor', 'fsdp')
    assert gate['mean'].sharding.spec == PartitionSpec()
    expected = whole.apply(peftjax.dequantize(small.params), **inputs)
    found = jax.jit(small.apply)(small.params, **inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@functools.cache
def _wide_llama(layers):
    """A small Llama whose stacks of layers are larger than anything else in a step."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
    )
    module, ids = Llama(config), jnp.ones((2, 4), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), input_ids=ids)['params']
    params = normal_like(shapes, scale=0.1)
    return peftjax.wrap(module, params, {'input_ids': ids}, config=config)


@functools.cache
def _packed_llama():
    return peftjax.quantize(_wide_llama(layers=16), 'nf4')


@pytest.mark.sampled
@pytest.mark.parametrize(
    'tx',
    [
        peftjax.lora(rank=2, targets=r'layers/.*'),
        peftjax.dora(rank=2, targets=r'layers/.*'),
        peftjax.oft(block_size=8, targets=r'layers/.*_proj'),
        peftjax.ia3(targets=r'layers/.*(k|v)_proj'),
        peftjax.pfeiffer(size=4, targets=r'layers/.*branch'),
    ],
    ids=lambda tx: tx.about.name,
)
def test_no_copy_in_full_precision_lives(tx):
    """No array of the compiled step, forward and backward, is as large as one stack of layers."""
    model = _packed_llama()
    predict = peftjax.adapt(model, tx)

    def loss(adapter, frozen, ids):
        return jnp.mean(predict(adapter, frozen, input_ids=ids) ** 2)

    adapter, frozen = jax.eval_shape(tx.init, jax.random.key(0), model)
    ids = jnp.ones((2, 4), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(adapter, frozen, ids).compile()
    largest = max(map(math.prod, shapes(compiled, r'f32\[([\d,]+)\]')))
    assert 64 * 64 <= largest < 16 * 64 * 64


def test_a_quantised_base_writes_what_its_values_would():
    model = _wide_llama(layers=2)
    small = peftjax.quantize(model, 'nf4')
    plain = model.replace(params=peftjax.dequantize(small.params))
    tx = peftjax.lora(rank=2, targets=r'layers/.*_proj')
    fresh, _ = tx.init(jax.random.key(0), small)
    adapter = peftjax.testing.perturb(fresh, seed=0)
    ids, mask = peftjax.pad_left([[1, 2, 3], [4]], 0)
    found, expected = (
        peftjax.generator(each, tx)(
            adapter,
            tx.freeze(each, adapter),
            jnp.asarray(ids),
            mask,
            max_new_tokens=6,
            pad_token_id=0,
        )
        for each in (small, plain)
    )
    np.testing.assert_array_equal(found, expected)


def test_loftq_starts_nearer_than_quantising_does():
    model = MODELS['linen scanned']()
    targets = r'layers/.*kernel'

    def distance(params):
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(model.params), strict=True)
        return sum(float(jnp.sum((mine - theirs) ** 2)) for mine, theirs in pairs)

    plain = distance(peftjax.dequantize(peftjax.quantize(model, 'nf4', targets).params))
    found = [plain]
    for iterations in (1, 5):
        tx = peftjax.loftq(rank=2, alpha=4, iterations=iterations, targets=targets)
        adapter, frozen = tx.init(jax.random.key(0), model)
        whole = frozen._replace(params=peftjax.dequantize(frozen.params))
        found.append(distance(tx.merge(adapter, whole)))
    assert found[2] < found[1] < 0.5 * found[0]
    with pytest.raises(peftjax.MergeError, match='dequantize'):
        tx.merge(adapter, frozen)


def test_what_cannot_be_quantised_is_named(tmp_path):
    mlp = peftjax.testing.tiny_mlp()
    with pytest.raises(ValueError, match=r"'nf5'; write one of \['int8', 'nf4'"):
        peftjax.quantize(mlp, 'nf5')
    with pytest.raises(peftjax.TargetError, match='no matrices in layers'):
        peftjax.quantize(mlp, 'nf4')
    with pytest.raises(peftjax.TargetError, match='hiden'):
        peftjax.quantize(mlp, 'nf4', r'hiden')
    with pytest.raises(ValueError, match='even number'):
        peftjax.NF4(block=7)
    config, weights, _, _ = golden('llama')
    with pytest.raises(ValueError, match='GGUF file holds in Q4_0'):
        peftjax.load(write_folder(tmp_path, config, weights), quantize='stored')


@pytest.mark.parametrize('name', ['llama/lora', 'llama/dora', 'llama/ia3', 'bert/lora'])
def test_an_adapter_of_peft_goes_on_a_quantised_base(name):
    """What another library trained is read, and computes what it would on the values read."""
    case = stored(name)
    family = name.partition('/')[0]
    task = 'classification' if family == 'bert' else None
    whole = peftjax.load(GOLDEN / family / 'base', task=task, scan=False)
    small = peftjax.quantize(whole, 'int8')
    plain = whole.replace(params=peftjax.dequantize(small.params))
    found = peftjax.load_adapter(GOLDEN / name, small)
    predict = peftjax.adapt(small, found.transform)
    frozen = found.transform.freeze(plain, found.adapter)
    mine = predict(found.adapter, found.frozen, **case.inputs)
    theirs = predict(found.adapter, frozen, **case.inputs)
    np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


def test_codes_are_in_no_file_and_have_no_gradient(tmp_path):
    model = _wide_llama(layers=2)
    config, weights, _, _ = golden('llama')
    source = write_folder(tmp_path / 'source', config, weights)
    small = peftjax.quantize(peftjax.load(source), 'nf4')
    with pytest.raises(ValueError, match=r'QuantizedArray\(nf4.*write peftjax.dequantize'):
        peftjax.save_checkpoint(tmp_path / 'out', small, small.params, source)
    assert not (tmp_path / 'out').exists()
    small = peftjax.quantize(model, 'nf4')
    with pytest.raises(ValueError, match=r'codes have no gradient; write peftjax.dequantize'):
        peftjax.train.fisher(lambda params, example: jnp.zeros(()), small.params, [jnp.ones(2)])
