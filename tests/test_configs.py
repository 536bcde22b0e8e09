"""Every config loads, says what it expects, and runs on its real model and data."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from configs.args import parse_arg
from experiments import build, train

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py') if path.stem[0] != '_')
NAMES.remove('args')
VARIANTS = {
    'lora_sentiment': ('', 'full', 'tiny', 'rank=4', 'full,tiny'),
    'lora_smollm2': ('', 'full', 'padded', 'tiny', 'padded,tiny'),
}


def _config(name: str, arg: str) -> ConfigDict:
    return importlib.import_module(f'configs.{name}').get_config(arg)


def test_every_config_has_its_variants_listed_here():
    assert set(NAMES) == set(VARIANTS)


@pytest.mark.parametrize('name', NAMES)
def test_the_header_gives_the_command_the_time_and_the_expected_number(name):
    header = importlib.import_module(f'configs.{name}').__doc__
    assert f'python -m experiments.main --config configs/{name}.py' in header
    for word in ('Expected:', 'Time:', 'Data:'):
        assert word in header
    assert re.search(r'of \d seeds?', header)


@pytest.mark.parametrize(
    ('name', 'arg'), [(name, arg) for name in NAMES for arg in VARIANTS.get(name, ())]
)
def test_every_variant_loads_and_names_methods_that_exist(name, arg):
    config = _config(name, arg)
    build.build_transform(config)
    build.build_optimizer(config, 10)
    assert max(config.data.lengths) > 0


@pytest.mark.parametrize('name', NAMES)
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
