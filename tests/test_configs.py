"""Every config and every row of its paper's table loads and is stepped; two run on real models."""

import functools
import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import peftjax
from configs import base
from configs.args import parse_arg
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig, RobertaConfig
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.models.t5 import T5
from peftjax.models.t5_config import T5Config
from peftjax.train import build, found, init_state, make_train_step
from peftjax.train import loop as train
from peftjax.train.config import Config
from peftjax.train.data.batches import collate
from peftjax.train.tasks import registry as tasks

ROOT = Path(__file__).parents[1]
NAMES = sorted(
    path.stem for path in (ROOT / 'configs').glob('*.py') if 'def get_config(' in path.read_text()
)
MEASURED = {
    'lora_sentiment': ('', 'full', 'head', 'tiny', 'rank=4', 'full,tiny'),
    'lora_smollm2': ('', 'full', 'padded', 'tiny', 'padded,tiny'),
}
# Of nobody's paper, and run on tables that tests/test_own_data.py writes.
OWN = ('own_data',)
METHODS = [name for name in NAMES if name not in (*MEASURED, *OWN)]
MODELS = {  # the shapes of published models whose families are built, or share their names
    'FacebookAI/roberta-base': RobertaConfig(50265, 768, 12, 12, 3072),
    'FacebookAI/roberta-large': RobertaConfig(50265, 1024, 24, 16, 4096),
    'google-bert/bert-base-uncased': BertConfig(30522, 768, 12, 12, 3072),
    'google-bert/bert-base-cased': BertConfig(28996, 768, 12, 12, 3072),
    'google-bert/bert-large-uncased': BertConfig(30522, 1024, 24, 16, 4096),
    'google-bert/bert-large-cased-whole-word-masking': BertConfig(28996, 1024, 24, 16, 4096),
    'microsoft/deberta-v3-base': BertConfig(128100, 768, 12, 12, 3072),
    'huggyllama/llama-7b': LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128),
    'meta-llama/Llama-2-7b-hf': LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128),
    'meta-llama/Meta-Llama-3-8B': LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128),
    'meta-llama/Llama-3.2-3B': LlamaConfig(128256, 3072, 8192, 28, 24, 8, 128),
    'mistralai/Mistral-7B-v0.1': LlamaConfig(32000, 4096, 14336, 32, 32, 8, 128),
    'google-t5/t5-base': T5Config(32128, 768, 64, 3072, 12, 12, 12),
    'bigscience/T0_3B': T5Config(
        *(32128, 2048, 64, 5120, 24, 32, 24),
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
        scale_decoder_outputs=False,
    ),
    'meta-llama/Llama-3.1-8B': LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128),
}


def _module(name: str):
    return importlib.import_module(f'configs.{name}')


def _config(name: str, arg: str) -> Config:
    return _module(name).get_config(arg)


def _abstract(module) -> peftjax.Model:
    """The module as a model without weights."""
    names = ('input_ids', 'attention_mask')
    if isinstance(module, T5):
        names += ('decoder_input_ids', 'decoder_attention_mask')
    ids = dict.fromkeys(names, jnp.zeros((2, 8), jnp.int32))
    params = jax.eval_shape(lambda key: module.init(key, **ids), jax.random.key(0))
    return peftjax.wrap(module, params['params'], ids)


@functools.cache
def _published(source: str) -> peftjax.Model:
    shape = MODELS[source]
    if isinstance(shape, LlamaConfig):
        return _abstract(Llama(shape))
    if isinstance(shape, T5Config):
        return _abstract(T5(shape))
    return _abstract(Bert(shape, outputs=2))


@functools.cache
def _tiny() -> peftjax.Model:
    """A random BERT with the paths of MiniLM, as small as the settings of the configs allow."""
    model = _abstract(Bert(BertConfig(128, 64, 2, 4, 128, 64), outputs=2, pooling='mean'))
    generator = np.random.default_rng(0)
    return model.replace(
        params=jax.tree.map(
            lambda leaf: jnp.asarray(0.1 * generator.normal(size=leaf.shape), leaf.dtype),
            model.params,
        )
    )


def _few_reviews(data: Config, tokenizer: object) -> tasks.Task:
    """What film_reviews makes, of random tokens and one length."""
    del data, tokenizer
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
    splits = {'train': rows, 'validation': rows, 'test': rows}
    return tasks.Task(splits, tasks.encoder_inputs, tasks.weighted_sums)


def _trainable(config: Config, model: peftjax.Model) -> int:
    """What a config trains of a model without weights."""
    counts = []

    def count(model: peftjax.Model) -> None:
        # Arguments that need the data are optional where they are asked for.
        needed = 'principal_subspaces' in config
        no_data = tasks.Task({}, tasks.encoder_inputs, tasks.weighted_sums)
        arguments = found.find(config, model, no_data) if needed else {}
        transform = build.build_transform(config, arguments)
        counts.append(peftjax.summary(transform, model).trainable)

    jax.eval_shape(count, model)
    return counts[0]


def test_every_config_without_rows_has_its_variants_listed_here():
    without = [name for name in NAMES if not hasattr(_module(name), 'ROWS')]
    assert without == sorted([*MEASURED, *OWN])


@pytest.mark.parametrize('name', [name for name in NAMES if name not in OWN])
def test_the_header_says_what_to_run_and_what_to_expect(name):
    header = _module(name).__doc__ or ''
    assert f'python -m experiments.main --config configs/{name}.py' in header
    words = ('Expected:', 'Data:')
    words += ('Time:',) if name in MEASURED else ('Paper:', 'Hyperparameters:')
    for word in words:
        assert word in header, word
    if name in MEASURED:
        assert re.search(r'of \d seeds?', header)
    else:
        assert re.search(r'arXiv:\d{4}\.\d{4,5}|openreview\.net|no paper', header)


@pytest.mark.parametrize(
    ('name', 'arg'), [(name, arg) for name in MEASURED for arg in MEASURED[name]]
)
def test_every_variant_loads_and_names_methods_that_exist(name, arg):
    config = _config(name, arg)
    build.build_transform(config)
    build.build_optimizer(config, 10)
    assert max(config.data.lengths) > 0


@pytest.mark.parametrize('name', METHODS)
def test_every_row_of_the_paper_loads_and_fits_its_model(name):
    for row in _module(name).ROWS:
        config = _config(name, f'paper,row={row}').lock()
        build.build_optimizer(config, 100_000)
        if config.model.source not in MODELS and config.found:
            continue  # what is found needs the model
        if config.model.source not in MODELS:
            build.build_transform(config)
            continue  # a family that is not built
        if name == 'fish_mask':
            continue  # its places follow from weights and data
        model = _published(config.model.source)
        count = _trainable(config, model)
        if 'select' in config.peft and any('classifier' in path for path in model.sites.weights):
            count -= peftjax.summary(peftjax.select(r'classifier/.*'), model).trainable
        assert count > 0
        if 'published' in config:
            assert config.published.value > 0
            assert config.published.trainable in (0, count)


@pytest.mark.parametrize('name', METHODS)
def test_a_step_on_a_small_model(name, monkeypatch):
    config = _config(name, 'tiny').lock()
    assert _config(name, '').peft == config.peft
    with config.unlocked():
        config.data.lengths = (8,)
    monkeypatch.setattr(build, 'build_model', lambda config, placement: _tiny())
    monkeypatch.setitem(tasks.TASKS, 'film_reviews', _few_reviews)
    run = build.build(config)
    key = jax.random.key(0)
    adapter, frozen = jax.jit(run.transform.init)(key, run.model)
    state = init_state(adapter, run.optimizer, key)
    batch = collate(run.task.splits['train'][:4], config.data.lengths)
    step = jax.jit(make_train_step(run.loss, run.optimizer), donate_argnums=0)
    state, metrics = step(state, frozen, batch)
    assert np.isfinite(metrics['loss'])
    assert np.isfinite(metrics['grad_norm']) and metrics['grad_norm'] > 0


@pytest.mark.parametrize('name', MEASURED)
def test_a_short_run_on_the_real_model_and_the_real_data(name, tmp_path):
    config = _config(name, 'tiny')
    config.duration = '2 steps'
    result = train.train(config, tmp_path, Console(quiet=True))
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


def test_a_row_that_is_not_there_raises():
    with pytest.raises(ValueError, match="no row 'c'.*it has a, b"):
        base.choose('row=c', {'a': (), 'b': ()})
