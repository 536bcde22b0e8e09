"""One step on any mesh: the same losses, a share of the base on each device, the whole nowhere."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import peftjax
from peftjax.core import paths
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.train import init_state, make_train_step
from tests.compiled import shapes

MESHES = {
    'data=8': {'data': 8},
    'fsdp=8': {'fsdp': 8},
    'data=2,fsdp=2,tensor=2': {'data': 2, 'fsdp': 2, 'tensor': 2},
}
PROJECTIONS = r'layers/.*(query|value|q_proj|v_proj)'
BRANCHES = r'layers/.*branch'
METHODS = {
    'lora': peftjax.lora(rank=8, targets=PROJECTIONS),
    'dora': peftjax.dora(rank=8, targets=PROJECTIONS),
    'bottleneck': peftjax.pfeiffer(size=8, targets=BRANCHES),
    'prefix': peftjax.prefix_tuning(num_virtual_tokens=4, targets=r'layers/.*core'),
    'prompt': peftjax.prompt_tuning(num_virtual_tokens=4, targets=r'.*embed.*tokens|.*word.*'),
    'ia3': peftjax.ia3(targets=r'layers/.*(key|value|k_proj|v_proj)'),
    'select': peftjax.select(r'layers/.*norm.*|layers/.*bias'),
    'full': peftjax.full(),
}
SIZES: dict[str, Any] = {
    'vocab_size': 64,
    'hidden_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
}
ALL_GATHER = r'= \w+\[([\d,]*)\]\S* all-gather'  # in the text of a compiled program
IDS = np.random.default_rng(0).integers(1, 64, (2, 16, 12))  # batches, examples, length


@functools.cache
def _model(family):
    if family == 'llama':
        config = LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, head_dim=8)
        module = Llama(config, remat='full')
    else:
        module = Bert(BertConfig(**SIZES, intermediate_size=64), outputs=8)
    ids = jnp.ones((2, 12), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), input_ids=ids)['params']
    params = peftjax.testing.perturb(params, seed=0, size=0.1)
    return peftjax.wrap(module, params, {'input_ids': ids}, config=module.config)


def _loss(model, transform):
    predict = peftjax.adapt(model, transform)

    def loss(adapter, frozen, batch, key):
        logits = predict(adapter, frozen, input_ids=batch['ids'])
        logits = logits if logits.ndim == 3 else logits[:, None]
        logits = logits[:, -batch['ids'].shape[1] :]
        targets = batch['ids'][:, : logits.shape[1]] % logits.shape[-1]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        weights = batch['weights'][:, None] * jnp.ones_like(each)
        return (each * weights).sum() / weights.sum(), {'weight': weights.sum()}

    return loss


def _batches():
    weights = np.random.default_rng(1).uniform(0.5, 1.5, (2, 16)).astype(np.float32)
    return 10 * [{'ids': ids, 'weights': w} for ids, w in zip(IDS, weights, strict=True)]


def _start(model, transform):
    adapter, frozen = transform.init(jax.random.key(1), model)
    return init_state(adapter, optax.adamw(3e-3), jax.random.key(2)), frozen


def _on_mesh(model, transform, mesh, **options):
    """The compiled step, with its state and everything frozen on a mesh."""
    state, frozen = _start(model, transform)
    where = peftjax.state_shardings(state, model, mesh)
    step = jax.jit(
        make_train_step(_loss(model, transform), optax.adamw(3e-3), **options),
        donate_argnums=0,
        out_shardings=(where, None),
    )
    placed = jax.device_put(frozen, peftjax.frozen_shardings(frozen, model, mesh))
    return step, jax.device_put(state, where), placed


def _on_one_device(model, transform):
    step = jax.jit(make_train_step(_loss(model, transform), optax.adamw(3e-3)))
    (state, frozen), losses = _start(model, transform), []
    for batch in _batches():
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics['loss']))
    return losses


@functools.cache
def _alone(family, name):
    return _on_one_device(_model(family), METHODS[name])


def _curve(step, state, frozen, mesh):
    losses = []
    with jax.set_mesh(mesh):
        for batch in _batches():
            batch = jax.device_put(batch, peftjax.batch_sharding(mesh))
            state, metrics = step(state, frozen, batch)
            losses.append(float(metrics['loss']))
    return losses


def _gathered(step, state, frozen, mesh):
    """Shapes of what the compiled step gathers from the devices."""
    batch = jax.device_put(_batches()[0], peftjax.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        return shapes(step.lower(state, frozen, batch).compile(), ALL_GATHER)


CASES = [('llama', name) for name in METHODS] + [('bert', 'lora'), ('bert', 'bottleneck')]


def _on_meshes():
    """Every case on the mesh with all three axes; on those with one axis, in turns.

    The rest is slow. By default a quarter of these cases run, by the mark `sampled`.
    """
    for number, (family, name) in enumerate(CASES):
        for turn, mesh in enumerate(MESHES):
            left = len(MESHES[mesh]) == 1 and number % 2 != turn
            marks = pytest.mark.slow if left else ()
            yield pytest.param(family, name, mesh, id=f'{family}-{name}-{mesh}', marks=marks)


@pytest.mark.sampled
@pytest.mark.parametrize(('family', 'name', 'mesh'), list(_on_meshes()))
def test_losses_are_those_of_one_device(family, name, mesh):
    axes = MESHES[mesh]
    model = _model(family)
    mesh = peftjax.make_mesh(axes.get('data', 1), axes.get('fsdp', 1), axes.get('tensor', 1))
    step, state, frozen = _on_mesh(model, METHODS[name], mesh)
    gathered = _gathered(step, state, frozen, mesh)
    expected = _alone(family, name)
    found = _curve(step, state, frozen, mesh)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sum(expected[-2:]) < 0.999 * sum(expected[:2])
    if family == 'llama' and mesh.shape['fsdp'] > 1:
        _assert_layers_are_gathered_one_by_one(model, gathered)


def _assert_layers_are_gathered_one_by_one(model, gathered):
    assert gathered, 'a layer is gathered when it is needed'
    stacks = {
        site.shape for site in model.sites.weights.values() if site.layout and site.layout.stack
    }
    assert not stacks & set(gathered), gathered
    largest = max(map(math.prod, gathered))
    assert largest <= max(math.prod(stack[1:]) for stack in stacks) or largest <= 64 * 32


@functools.cache
def _quantized():
    """A model on NF4, and the losses of one device."""
    model = peftjax.quantize(_model('llama'), peftjax.NF4(block=8))
    return model, _on_one_device(model, METHODS['lora'])


@pytest.mark.sampled
@pytest.mark.parametrize('sizes', MESHES.values(), ids=MESHES)
def test_a_quantised_base_is_shared_out_in_its_codes(sizes):
    (model, expected), mesh = _quantized(), peftjax.make_mesh(**sizes)
    step, state, frozen = _on_mesh(model, METHODS['lora'], mesh)
    codes = frozen.params['layers']['mlp']['up_proj']['kernel'].arrays['codes']
    assert codes.addressable_shards[0].data.size == codes.size // (8 // sizes.get('data', 1))
    for shape in _gathered(step, state, frozen, mesh):
        assert math.prod(shape) <= 64 * 32, f'{shape} is more than a layer'
    np.testing.assert_allclose(_curve(step, state, frozen, mesh), expected, rtol=1e-5)


def test_parts_of_a_batch_count_as_in_the_whole():
    mesh = peftjax.make_mesh(data=2, fsdp=2, tensor=2)
    step, state, frozen = _on_mesh(_model('llama'), METHODS['lora'], mesh, accumulate=4)
    np.testing.assert_allclose(
        _curve(step, state, frozen, mesh), _alone('llama', 'lora'), rtol=1e-5
    )


@pytest.mark.parametrize('way', ['pmap', 'shard_map'])
def test_the_same_step_runs_with_a_named_axis(way):
    model, transform = _model('llama'), METHODS['lora']
    step = make_train_step(_loss(model, transform), optax.adamw(3e-3), axis_name='data')
    (state, frozen), losses = _start(model, transform), []
    if way == 'pmap':
        run = jax.pmap(step, axis_name='data', in_axes=(None, None, 0), out_axes=None)
    else:
        mesh = peftjax.make_mesh(data=8)
        run = jax.jit(
            jax.shard_map(
                step,
                mesh=mesh,
                in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec('data')),
                out_specs=PartitionSpec(),
                check_vma=False,
            )
        )
    for batch in _batches():
        if way == 'pmap':
            batch = jax.tree.map(lambda leaf: leaf.reshape(8, 2, *leaf.shape[1:]), batch)
        state, metrics = run(state, frozen, batch)
        losses.append(float(metrics['loss']))
    np.testing.assert_allclose(losses, _alone('llama', 'lora'), rtol=1e-5)


@pytest.mark.parametrize('sizes', [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}, {'data': 2, 'fsdp': 4}])
def test_the_base_is_shared_out(sizes):
    model, mesh = _model('llama'), peftjax.make_mesh(**sizes)
    params = jax.device_put(model.params, peftjax.shardings(model, mesh))
    first = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(params)
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    matrices = [site for site in model.sites.weights.values() if not site.vector]
    split = sum(int(np.prod(site.shape)) for site in matrices) * 4
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert held == split // (8 // sizes.get('data', 1)) + (whole - split)


def test_optimiser_states_lie_like_their_leaves():
    model, mesh = _model('llama'), peftjax.make_mesh(fsdp=4, tensor=2)
    transform = peftjax.chain(METHODS['lora'], peftjax.select(r'layers/.*up_proj/kernel'))
    state, frozen = _start(model, transform)
    where = peftjax.state_shardings(state, model, mesh)
    for tree in (where.adapter, where.opt_state[0].mu, where.opt_state[0].nu):
        assert tree[1]['layers/mlp/up_proj/kernel'].spec == PartitionSpec(None, 'fsdp', 'tensor')
        leaves = tree[0]['layers/self_attn/q_proj/kernel']
        assert leaves['a'].spec == PartitionSpec(None, 'fsdp', None)
        assert leaves['b'].spec == PartitionSpec(None, None, 'tensor')
    assert where.step.spec == where.opt_state[0].count.spec == PartitionSpec()
    placed = peftjax.frozen_shardings(frozen, model, mesh)
    assert paths.slots(placed.params)['layers/mlp/up_proj/kernel'] == peftjax.Hole(
        (2, 32, 64), jnp.dtype(jnp.float32)
    )
    assert all(each.spec == PartitionSpec() for each in jax.tree.leaves(placed.own))


def test_neighbours_meet_once_a_sublayer():
    model, mesh = _model('llama'), peftjax.make_mesh(tensor=2, fsdp=4)
    specs = paths.flatten(peftjax.shardings(model, mesh))
    for name in ('self_attn/o_proj', 'mlp/down_proj'):
        assert specs[f'layers/{name}/kernel'].spec == PartitionSpec(None, 'tensor', 'fsdp')
    for name in ('self_attn/q_proj', 'self_attn/k_proj', 'mlp/gate_proj', 'mlp/up_proj'):
        assert specs[f'layers/{name}/kernel'].spec == PartitionSpec(None, 'fsdp', 'tensor')


def test_a_mesh_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r'has 6 devices, but there are 8'):
        peftjax.make_mesh(data=3, fsdp=2)


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match='at least 1 part'):
        make_train_step(lambda *_: (jnp.zeros(()), {}), optax.sgd(1.0), accumulate=0)
    step = make_train_step(lambda *_: (jnp.zeros(()), {}), optax.sgd(1.0), accumulate=3)
    state = init_state({'a': jnp.ones(2)}, optax.sgd(1.0), jax.random.key(0))
    with pytest.raises(ValueError, match='a batch of 16 cannot be cut into 3'):
        step(state, {}, jnp.ones(16))
