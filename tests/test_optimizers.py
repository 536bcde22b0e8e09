"""What a config says about the optimiser: rates, schedule, wrappers, penalties, what is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import testing
from peftjax.train import build, found
from peftjax.train.optimizers import build_optimizer, schedule
from peftjax.train.settings import Settings, read_settings
from peftjax.train.task import Task


def _config(**fields) -> Settings:
    methods = {'methods': ('lora', 'select'), 'lora': {'rank': 2, 'targets': 'hidden'}}
    return read_settings({'lr': 1.0, 'optimizer': 'sgd', **methods, **fields})


def _update(config, slope=1.0):
    """What the first step adds to an adapter of two parts, each one number."""
    adapter = (jnp.asarray(slope), jnp.asarray(slope))
    optimizer = build_optimizer(config, steps=10)
    updates, _ = jax.jit(optimizer.update)(adapter, optimizer.init(adapter), adapter)
    return [float(part) for part in updates]


def _rates(config, steps):
    """The rate of every step, and after the last."""
    rate = schedule(config, steps)
    return np.asarray(jnp.stack([jnp.asarray(rate(step)) for step in range(steps + 1)]))


def test_a_method_may_have_a_rate_of_its_own():
    assert _update(_config()) == [-1.0, -1.0]
    assert _update(_config(rates={'select': 0.25})) == [-1.0, -0.25]
    with pytest.raises(ValueError, match=r"rates names \['head'\]; the methods are "):
        _update(_config(rates={'head': 0.25}))


def test_gradients_are_clipped_where_a_norm_is_given():
    assert _update(_config(), slope=3.0) == [-3.0, -3.0]
    np.testing.assert_allclose(_update(_config(clip_norm=1.0), slope=3.0), -(0.5**0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ('shape', 'middle', 'end'), [('linear', 0.5, 0.0), ('cosine', 0.5, 0.0), ('constant', 1.0, 1.0)]
)
@pytest.mark.parametrize('warmup', [0.2, 20])
def test_the_rate_rises_for_a_share_or_a_number_of_steps_and_falls(shape, middle, end, warmup):
    rates = _rates(_config(schedule=shape, warmup=warmup), steps=100)
    np.testing.assert_allclose(rates[[0, 20]], [0.05, 1.0], rtol=1e-6)
    assert np.all(np.diff(rates[:21]) > 0)
    np.testing.assert_allclose(rates[[60, 100]], [middle, end], atol=1e-6)


def test_a_warm_up_longer_than_the_run_ends_with_it():
    rates = _rates(_config(warmup=500), steps=4)
    np.testing.assert_allclose(rates[[0, 4]], [0.25, 1.0])


def test_what_is_around_the_optimizer_is_told_the_steps_of_the_run():
    settings = {'target_rank': 1, 'initial_steps': 6, 'final_steps': 4}
    with pytest.raises(ValueError, match='total_steps is 10, initial_steps 6, final_steps 4'):
        _update(_config(around=('adalora_allocation',), adalora_allocation=settings))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'optimizer': 'adamm'}, "optimizer names 'adamm', which optax does not have"),
        ({'around': ('faster',)}, "around names 'faster', which peftjax.train does not"),
        ({'schedule': 'step'}, "schedule is 'step'; write one of linear, cosine, constant"),
    ],
)
def test_unknown_names_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        _update(_config(**fields))


def test_penalties_are_summed_with_their_weights_and_unknown_ones_raise():
    assert build.build_penalty(_config())(None, {}) == 0.0
    with pytest.raises(ValueError, match="penalties names 'orthogonal', which peftjax"):
        build.build_penalty(_config(penalties={'orthogonal': 0.1}))


def test_an_unknown_way_to_find_an_argument_raises():
    config = _config(found={'lora': {'init': 'evva'}})
    with pytest.raises(ValueError, match=r"found.lora.init names 'evva'; known: eva, fisher"):
        found.find(config, testing.tiny_mlp(), Task(splits={}, totals=lambda forward, batch: {}))
