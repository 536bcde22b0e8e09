"""Every config says what it was measured to give, and is stepped; two run on real models."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import peftjax
from configs.args import parse_arg
from experiments.studies import results
from experiments.studies.methods import scores
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig
from peftjax.train import train
from peftjax.train.build import build, build_transform
from peftjax.train.engine import Alone
from peftjax.train.optimizers import build_optimizer
from peftjax.train.placement import Placement
from peftjax.train.settings import Settings, read_settings
from peftjax.train.task import Task
from peftjax.train.tasks import base

ROOT = Path(__file__).parents[1]
NAMES = sorted(
    path.stem for path in (ROOT / 'configs').glob('*.py') if 'def get_config(' in path.read_text()
)
MEASURED = {
    'lora_sentiment': ('', 'full', 'head', 'tiny', 'rank=4', 'full,tiny'),
    'lora_smollm2': ('', 'full', 'padded', 'tiny', 'padded,tiny'),
}
# Run on tables that tests/test_own_data.py writes.
OWN = ('own_data',)
METHODS = [name for name in NAMES if name not in (*MEASURED, *OWN)]
SCORES = {
    score.method: score
    for score in scores.scores(results.read(ROOT / 'docs/comparison/results.jsonl'))
}
# Its start takes minutes on a CPU, and nothing of it was measured.
NOT_MEASURED = ('loftq',)


def _module(name: str):
    return importlib.import_module(f'configs.{name}')


def _settings(name: str, arg: str = '') -> Settings:
    make = _module(name).get_config
    return read_settings(make(arg) if arg else make())


def _tiny() -> peftjax.Model:
    """A random BERT with the paths of MiniLM, as small as the settings of the configs allow."""
    module = Bert(BertConfig(128, 64, 2, 4, 128, 64), outputs=2, pooling='mean')
    ids = dict.fromkeys(('input_ids', 'attention_mask'), jnp.zeros((2, 8), jnp.int32))
    params = jax.eval_shape(lambda key: module.init(key, **ids), jax.random.key(0))['params']
    generator = np.random.default_rng(0)
    random = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * generator.normal(size=leaf.shape), leaf.dtype), params
    )
    return peftjax.wrap(module, random, ids)


def _reviews() -> Task:
    """What film_reviews makes, of random tokens and one length."""
    ids = np.random.default_rng(0).integers(1, 64, (16, 8)).astype(np.int32)
    rows = [
        {
            'input_ids': row,
            'segment_ids': np.ones_like(row),
            'targets': np.int32(row[0] % 2),
            'weights': np.float32(1.0),
        }
        for row in ids
    ]

    def totals(forward, batch):
        return base.weighted_totals(forward(base.encoder_inputs(batch)), batch)

    return Task(splits={'train': rows}, totals=totals, batch_size=4, lengths=(8,))


@pytest.mark.parametrize('name', [*METHODS, *MEASURED])
def test_the_header_says_what_to_run_and_what_to_expect(name):
    header = _module(name).__doc__ or ''
    assert f'--config configs/{name}.py' in header
    for word in ('Expected:', 'Data:', 'Time:'):
        assert word in header, word
    if name in MEASURED:
        assert re.search(r'of \d seeds?', header)
    else:
        assert re.search(r'arXiv:\d{4}\.\d{4,5}|openreview\.net|Paper: no', header)


@pytest.mark.parametrize('name', [name for name in METHODS if name not in NOT_MEASURED])
def test_a_config_has_the_tuned_rate_and_says_the_number_that_it_gave(name):
    score, settings = SCORES[name], _settings(name)
    assert settings.lr == score.rate
    header = ' '.join((_module(name).__doc__ or '').split())
    assert f'accuracy {score.mean:.3f} ± {score.deviation:.3f} on unseen films' in header
    assert f'{score.trainable:,} trained parameters, {score.percent:.3g} %' in header
    assert f'loss {score.loss:.3f}: mean and deviation of {score.seeds} seeds of the' in header
    assert settings.task == 'film_reviews' and settings.duration == '64 steps'


@pytest.mark.parametrize(
    ('name', 'arg'), [(name, arg) for name in MEASURED for arg in MEASURED[name]]
)
def test_every_variant_loads_and_names_methods_that_exist(name, arg):
    settings = _settings(name, arg)
    build_transform(settings)
    build_optimizer(settings, 10)
    assert max(settings.data.lengths) > 0


# Every method trains in the contract; here it is what a config says besides that is tried. By
# default a quarter of these configs run, by the mark `sampled`.
_BESIDE = ('eva', 'fish_mask', 'adalora', 'lora_plus', 'full', 'prefix_tuning', 'unipelt', 'loreft')


@pytest.mark.sampled
@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if name in _BESIDE or not n % 5 else pytest.mark.slow)
        for n, name in enumerate(METHODS)
    ],
)
def test_a_step_on_a_small_model(name):
    small = {'duration': '4 steps', 'data.lengths': [8]}
    small |= {'eva.batches': 2} if name == 'eva' else {}
    small |= {'fisher.examples': 8} if name == 'fish_mask' else {}
    small |= _short_allocation() if name == 'adalora' else {}
    run = build(_settings(name).change(small), _tiny(), _reviews())
    state, beside = run.start()
    engine = Alone(run, state, beside, Placement(None))
    [(_, metrics)] = engine.step(next(iter(engine.batches())).rows)
    assert np.isfinite(metrics['loss'])
    assert np.isfinite(metrics['grad_norm']) and metrics['grad_norm'] > 0


def _short_allocation() -> dict[str, int]:
    names = ('initial_steps', 'final_steps', 'every')
    return {f'adalora_allocation.{name}': 1 for name in names}


@pytest.mark.slow
def test_the_small_budget_draws_other_sentences_for_another_seed(tmp_path):
    settings = _settings('bitfit')
    assert settings.data.options == {'longest': 24, 'train': 1024, 'validation': 384, 'test': 1024}
    short = {'duration': '1 steps', 'data.options.train': 16, 'data.options.validation': 8}
    short |= {'data.options.test': 8, 'trackers': []}
    rows = []
    for seed in (0, 1):
        found = train(
            settings.change({**short, 'seed': seed}), tmp_path / str(seed), Console(quiet=True)
        )
        assert {n: len(each) for n, each in found.task.splits.items()} == {
            **{'train': 16, 'validation': 8, 'test': 8}
        }
        longest = max(len(r['input_ids']) for each in found.task.splits.values() for r in each)
        assert longest <= 24
        rows.append({n: str(each) for n, each in found.task.splits.items()})
    assert rows[0]['train'] != rows[1]['train'] and rows[0]['test'] == rows[1]['test']


@pytest.mark.sampled
@pytest.mark.parametrize('name', MEASURED)
def test_a_short_run_on_the_real_model_and_the_real_data(name, tmp_path):
    settings = _settings(name, 'tiny').change({'duration': '2 steps'})
    result = train(settings, tmp_path, Console(quiet=True)).result
    assert result['steps'] == 2
    assert np.isfinite(result['test/loss'])


def test_arguments_are_read_by_the_type_of_their_default():
    arg = parse_arg('full, rank=4,rate=1e-3', full=False, rank=8, rate=0.1, name='a')
    assert arg.to_dict() == {'full': True, 'rank': 4, 'rate': 1e-3, 'name': 'a'}
    assert parse_arg(None, full=False).full is False
    assert parse_arg('full=false', full=True).full is False


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('ful', "unknown config argument 'ful'; known: full, rank"),
        ('rank=four', 'does not read as int; write for example rank=8'),
        ('full=maybe', 'does not read as bool'),
        ('full,full', 'given twice'),
    ],
)
def test_wrong_arguments_raise(text, message):
    with pytest.raises(ValueError, match=message):
        parse_arg(text, full=False, rank=8)
