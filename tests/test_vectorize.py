"""Many runs in one program: each computes what it would alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
from tests.compiled import text
from tests.contract_models import IDS, MODELS
from tests.rows import METHODS

STEPS = 50
KEY = jax.random.key(0)


class Solo:
    """A run by itself: its numbers, its state before, and the losses of its steps."""

    def __init__(self, model, transform, make_optimizer, numbers, seed, data_seed=0):
        predict = peftjax.adapt(model, transform)

        def loss(adapter, frozen, batch, key):
            logits = predict(adapter, frozen, ids=batch, adapter_key=key)
            values = optax.softmax_cross_entropy_with_integer_labels(logits, (batch + 1) % 13)
            return values.mean(), {}

        def step(numbers, state, frozen, batch):
            return peftjax.train.make_train_step(loss, make_optimizer(**numbers))(
                state, frozen, batch
            )

        self.step, self.numbers = step, numbers
        adapter, self.frozen = transform.init(jax.random.key(seed), model)
        optimizer = make_optimizer(**numbers)
        self.state = peftjax.train.init_state(adapter, optimizer, jax.random.key(100 + seed))
        self.batches = np.random.default_rng(data_seed).integers(0, 13, (STEPS, *IDS.shape))
        self.key = peftjax.train.program_key(transform)

    def run(self, steps=STEPS):
        def body(state, batch):
            return self.step(self.numbers, state, self.frozen, batch)

        batches = jnp.asarray(self.batches[:steps], jnp.int32)
        return jax.jit(lambda state: jax.lax.scan(body, state, batches))(self.state)


def side_by_side(solos):
    """The step over runs, which is that of the last one, and its arguments but for the batch."""
    frozen, axes = peftjax.train.share([solo.frozen for solo in solos])
    numbers = peftjax.train.stack([jax.tree.map(jnp.float32, solo.numbers) for solo in solos])
    step = jax.vmap(solos[-1].step, in_axes=(0, 0, axes, 0))
    return step, numbers, peftjax.train.stack([solo.state for solo in solos]), frozen


def together(solos, steps=STEPS):
    """The runs as one program: final states and metrics, the runs in front."""
    step, numbers, state, frozen = side_by_side(solos)
    batches = jnp.stack([jnp.asarray(solo.batches[:steps], jnp.int32) for solo in solos], axis=1)

    def body(state, batch):
        return step(numbers, state, frozen, batch)

    return jax.jit(lambda state: jax.lax.scan(body, state, batches))(state)


def assert_same(solos, steps=STEPS, compared=None):
    """Runs `compared`, or all of them, are as alone; the states of all of them, after the steps."""
    states, metrics = together(solos, steps)
    for index in range(len(solos)) if compared is None else compared:
        state, own = solos[index].run(steps)
        np.testing.assert_allclose(metrics['loss'][:, index], own['loss'], rtol=1e-5, atol=1e-6)
        mine = peftjax.train.unstack(states.adapter, index, state.adapter)
        assert jax.tree.structure(mine) == jax.tree.structure(state.adapter)
        for found, expected in zip(
            jax.tree.leaves(mine), jax.tree.leaves(state.adapter), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    return states


def adamw(rate, decay):
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, 5, STEPS)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda step: rate * shape(step), eps=1e-4, weight_decay=decay),
    )


def numbers(rate, decay=0.01):
    return {'rate': rate, 'decay': decay}


model = MODELS['linen scanned']


_DISTINCT = [name for name, row in METHODS.items() if not row.variant]


@pytest.mark.sampled
@pytest.mark.parametrize(
    'name',
    [
        name if number % 6 == 0 else pytest.param(name, marks=pytest.mark.slow)
        for number, name in enumerate(_DISTINCT)
    ],
)
def test_runs_of_any_method_share_a_program(name):
    row = METHODS[name]

    def solo(seed, rate):
        transform = row.maker(model())(row.targets)
        return Solo(model(), transform, adamw, numbers(rate), seed, data_seed=seed)

    solos = [solo(0, 1e-3), solo(1, 3e-3)]
    assert solos[0].key == solos[1].key
    # The program is that of the last run: the first is the one whose numbers are put in.
    assert_same(solos, steps=10, compared=[0])


@pytest.mark.slow
def test_rates_decays_alphas_dropouts_ranks_and_seeds_differ_over_fifty_steps():
    def solo(seed, rank, alpha, dropout, rate, decay):
        low_rank = peftjax.lora(
            rank=rank, alpha=alpha, dropout=dropout, targets=r'layers.*/(up|down)'
        )
        transform = peftjax.chain(low_rank, peftjax.select(r'layers.*/norm/.*'))
        return Solo(model(), transform, adamw, numbers(rate, decay), seed, data_seed=seed)

    solos = [
        solo(1, 2, 8, 0.2, 3e-3, 0.1),
        solo(2, 1, 2.0, 0.0, 1e-2, 0.3),  # No dropout, beside others.
        solo(0, 4, 4.0, 0.1, 1e-3, 0.01),
    ]
    assert len({solo.key for solo in solos}) == 1
    assert_same(solos)


PADDED = {
    'lora': lambda size: peftjax.lora(rank=size, alpha=4, targets=r'layers.*/(up|down)'),
    'rslora': lambda size: peftjax.lora(rank=size, alpha=4, rslora=True, targets=r'layers.*/up'),
    'lora of the embedding': lambda size: peftjax.lora(rank=size, alpha=4, targets=r'embed'),
    'pissa': lambda size: peftjax.lora(rank=size, init='pissa', targets=r'layers.*/(up|down)'),
    'dora': lambda size: peftjax.dora(rank=size, alpha=4, targets=r'layers.*/(up|down)'),
    'hira': lambda size: peftjax.hira(rank=size, targets=r'layers.*/(up|down)'),
    'loha': lambda size: peftjax.loha(rank=size, alpha=4, targets=r'layers.*/(up|down)'),
    'delora': lambda size: peftjax.delora(rank=size, strength=1.0, targets=r'layers.*/(up|down)'),
    'adalora': lambda size: peftjax.adalora(init_rank=size, targets=r'layers.*/(up|down)'),
    'houlsby': lambda size: peftjax.houlsby(size=size, targets=r'layers.*/(attention|down)'),
    'parallel': lambda size: peftjax.parallel_adapter(size=size, targets=r'layers.*/attention'),
    'bottleneck': lambda size: peftjax.bottleneck(size=size, targets=r'layers.*/down'),
}


_TOLD = ('lora', 'dora', 'loha', 'adalora', 'houlsby')


@pytest.mark.sampled
@pytest.mark.parametrize(
    'make',
    [
        pytest.param(make, id=name, marks=() if name in _TOLD else pytest.mark.slow)
        for name, make in PADDED.items()
    ],
)
def test_ranks_share_a_program_padded_with_zeros(make):
    solos = [Solo(model(), make(size), adamw, numbers(1e-3), seed=size) for size in (2, 4)]
    assert solos[0].key == solos[1].key
    # The program is that of the second run, the wider: the first is the one that is padded.
    states = assert_same(solos, compared=[0])
    like = peftjax.train.unstack(states, 0, solos[0].state)
    for whole, own in zip(jax.tree.leaves(states), jax.tree.leaves(like), strict=True):
        if jnp.issubdtype(whole.dtype, jnp.number):
            beyond = np.array(whole[0])
            beyond[tuple(slice(size) for size in own.shape)] = 0
            assert not beyond.any()


@pytest.mark.parametrize('seeds', [(0, 0), (0, 1)], ids=['one seed', 'two seeds'])
def test_projections_that_sites_share_are_held_once_for_all_runs(seeds):
    looped = MODELS['linen looped']()
    frozens = [
        peftjax.vera(rank=2, seed=seed, targets=r'layers.*/up').init(KEY, looped)[1]
        for seed in seeds
    ]
    frozen, axes = peftjax.train.share(frozens)
    first, second = (frozen.own[f'layers_{i}/up/kernel'] for i in range(2))
    assert set(first) == {'frozen_a', 'frozen_b'}
    for name, leaf in first.items():
        assert leaf is second[name]
        assert axes.own['layers_1/up/kernel'][name] == (None if len(set(seeds)) == 1 else 0)


def test_a_run_that_diverges_hurts_no_other():
    def solo(rate):
        transform = peftjax.lora(rank=2, alpha=4, targets=r'layers.*/(up|down)')
        return Solo(model(), transform, lambda rate: optax.sgd(rate), {'rate': rate}, seed=0)

    solos = [solo(0.01), solo(1e30), solo(0.02)]
    _, metrics = together(solos)
    assert np.isnan(metrics['loss'][-1, 1])
    for index in (0, 2):
        _, own = solos[index].run()
        np.testing.assert_allclose(metrics['loss'][:, index], own['loss'], rtol=1e-5)


def test_the_base_is_there_once():
    """Compiled for 8 runs, no array of the program is as large as 8 copies of a stack of layers."""
    transform = peftjax.lora(rank=2, alpha=4, targets=r'layers.*/(up|down)')
    solos = [Solo(model(), transform, adamw, numbers(1e-3 * n), seed=n) for n in range(1, 9)]
    step, *arguments = side_by_side(solos)
    batch = jnp.stack([IDS] * 8)
    program = text(jax.jit(step).lower(*arguments, batch).compile())
    kernel = model().params['layers']['up']['kernel']
    shape = ','.join(map(str, kernel.shape))
    assert f'f32[{shape}]' in program
    assert f'f32[8,{shape}]' not in program


def test_runs_with_other_numbers_share_nothing():
    """A bound on rotations is a number that only one of them has."""
    bound, free = (
        peftjax.oft(block_size=2, eps=eps, targets=r'layers.*/up').init(KEY, model())[1]
        for eps in (0.1, None)
    )
    for pair in ([bound, free], [free, bound]):
        with pytest.raises(ValueError, match='the same numbers'):
            peftjax.train.share(pair)
