"""What the reference of a preference loss adds to the memory of a step: nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.train.run import Run
from peftjax.train.settings import read_settings
from peftjax.train.tasks.registry import find_task
from peftjax.train.tasks.sides import side_name
from tests.tiny_runs import checkpoint


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
    """`planned(loss)`: bytes of temporary arrays of a step in which logits are the largest."""
    folder = tmp_path_factory.mktemp('memory')
    source = str(checkpoint(folder / 'llama', 'tiny_llama'))
    names = (side_name(name, i) for name in ('input_ids', 'targets', 'segment_ids') for i in (0, 1))
    rows: dict = {name: np.ones((8, 64), np.int32) for name in names}
    rows |= {'weights': np.ones(8, np.float32), 'desirable': np.ones(8, bool)}
    module, ids = Llama(LlamaConfig(4096, 16, 32, 2, 4, 2, 4)), jnp.ones((1, 4), int)
    params = module.init(jax.random.key(0), input_ids=ids)['params']

    def planned(loss: str) -> int:
        settings = read_settings(
            {
                'model': {'source': source, 'task': 'causal_lm'},
                'task': 'preference',
                'data': {'batch_size': 8, 'options': {'loss': loss}},
            }
        )
        task = find_task('preference')(settings, peftjax.load(source, task='causal_lm'))
        run = Run(
            model=peftjax.wrap(module, params, {'input_ids': ids}),
            transform=peftjax.lora(rank=2, targets='all-linear'),
            task=task,
            make_optimizer=lambda _: optax.adamw(1e-4),
            steps=1,
            steps_per_epoch=1,
            log_every=1,
            eval_every=1,
            save_every=1,
        )
        state, beside = run.start()
        step = jax.jit(lambda state, beside, rows: run.step({}, state, beside, rows))
        plan = step.lower(state, beside, rows).compile().memory_analysis()
        assert plan is not None
        return plan.temp_size_in_bytes

    return planned


@pytest.mark.sampled
@pytest.mark.parametrize('loss', ['dpo', 'ipo', 'kto'])
def test_a_reference_holds_no_logits_beside_those_of_the_model(loss, planned):
    alone = planned('simpo')  # The same rows without a reference.
    assert planned(loss) <= 1.05 * alone
