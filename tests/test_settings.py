"""Settings: read from any mapping, refused before anything is loaded, and written back."""

import json

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from peftjax.train.method_calls import read_call
from peftjax.train.settings import SettingsError, read_settings


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'learing_rate': 1.0}, r"no setting 'learing_rate'; near names: \["),
        ({'data': {'bach_size': 4}}, r"no setting 'data.bach_size'; near names: \['data.batch_siz"),
        ({'lora': {'rnak': 4}}, r"no setting 'lora.rnak'; near names: \['lora.rank'"),
        ({'adamw': {'weight_dcay': 0.1}}, r"'adamw.weight_dcay'; near .*'adamw.weight_decay'"),
        ({'lorra': {'rank': 4}}, r"no setting 'lorra'; near names"),
        ({'lora': 4}, r"no setting 'lora'"),
        ({'lr': 'fast'}, r"lr does not take 'fast'; write a number"),
        ({'accumulate': 1.5}, r'accumulate does not take 1.5; write a whole number'),
        ({'seed': True}, r'seed does not take True'),
        ({'methods': 'lora'}, r"methods does not take 'lora'; write a list"),
        ({'methods': [1]}, r'methods\[0\] does not take 1; write a text'),
        ({'data': 'x.csv'}, r"data is 'x.csv'; write a mapping with the fields source"),
        ({'lora': {'rank': 'four'}}, r"lora.rank does not take 'four'; write a whole number"),
        ({'lora': {'rank': 4.0}}, r'lora.rank does not take 4.0'),
        ({'lr': 0}, r'lr is 0.0; write a number above 0'),
        ({'lr': -1e-3}, r'lr is -0.001'),
        ({'lr': float('nan')}, r'lr is nan'),
        ({'lr': 1e-300}, r'lr is 1e-300; write a number with an absolute value from 1.2e-38'),
        ({'clip_norm': 1e300}, r'clip_norm is 1e\+300; write a number with an absolute value'),
        ({'accumulate': 0}, r'accumulate is 0'),
        ({'data': {'batch_size': -8}}, r'data.batch_size is -8'),
        ({'data': {'eval_batch_size': 0}}, r'data.eval_batch_size is 0'),
        ({'data': {'lengths': [8, 0]}}, r'data.lengths\[1\] is 0'),
        ({'data': {'limit': -1}}, r'data.limit is -1; write 0 or a number above it'),
        ({'mesh': {'fsdp': 0}}, r'mesh.fsdp is 0'),
        ({'warmup': -0.1}, r'warmup is -0.1'),
        ({'rates': {'lora': 0.0}}, r'rates.lora is 0.0'),
        ({'duration': '0 epochs'}, r"duration: duration '0 epochs' does not read"),
        ({'duration': '-3 epochs'}, r"'-3 epochs' does not read as a number above 0"),
        ({'eval_every': 'often'}, r"eval_every: duration 'often' does not read"),
        ({'schedule': 'step'}, r"schedule is 'step'; write one of linear, cosine, constant"),
        ({'optimizer': 'adamm'}, r"'adamm', which optax does not have; near names: \['adam'"),
    ],
    ids=str,
)
def test_what_no_run_can_have_is_refused(config, message):
    with pytest.raises(SettingsError, match=message):
        read_settings(config)


def test_whole_numbers_are_numbers_and_lists_are_lists():
    settings = read_settings({'lr': 1, 'data': {'lengths': [8, 16]}, 'best': None})
    assert settings.lr == 1.0 and isinstance(settings.lr, float)
    assert settings.data.lengths == (8, 16)


def test_dotted_changes_change_these_fields_and_no_others():
    settings = read_settings({'lora': {'rank': 8, 'alpha': 16.0}, 'data': {'batch_size': 4}})
    changed = settings.change({'lora.rank': 4, 'data.eval_batch_size': 2, 'lr': 0.1})
    assert changed.section('lora') == {'rank': 4, 'alpha': 16.0}
    assert (changed.data.batch_size, changed.data.eval_batch_size, changed.lr) == (4, 2, 0.1)
    assert settings.section('lora')['rank'] == 8
    assert changed.change({'lora.rank': 8, 'data.eval_batch_size': 64, 'lr': 1e-3}) == settings
    for name in ('lora.rnak', 'data.bach_size', 'lr.peak', 'select.rank', 'lorra.rank'):
        with pytest.raises(SettingsError, match=f"no setting '{name.split('.')[0]}"):
            settings.change({name: 4})


def test_the_section_of_a_function_that_is_not_in_use_stays():
    """One config for several methods and optimisers: a flag chooses."""
    config = {'lora': {'rank': 2}, 'full': {}, 'adamw': {'weight_decay': 0.1}}
    settings = read_settings({**config, 'methods': ['full'], 'optimizer': 'sgd'})
    assert settings.section('lora') == {'rank': 2} and settings.section('adamw')


def test_a_text_that_no_file_can_hold_is_refused():
    with pytest.raises(SettingsError, match=r"model.source does not take 'caf\\udce9'"):
        read_settings({'model': {'source': 'caf\udce9'}})


def test_config_dicts_and_json_say_the_same():
    plain = {'lr': 0.1, 'methods': ['lora', 'select'], 'lora': {'rank': 2}, 'mesh': {'data': 2}}
    settings = read_settings(plain)
    assert read_settings(ConfigDict(plain)) == settings
    assert read_settings(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    'text', ['lora(8)', 'lora(rank=f())', 'a.b', 'lora()()', 'lora(**x)', '', 'lora(rank=', '1']
)
def test_a_call_that_is_no_method_with_values_is_refused(text):
    with pytest.raises(SettingsError, match='does not read as a method'):
        read_call(text)


def test_a_call_gives_its_arguments():
    assert read_call(' ia3 ') == ('ia3', {})
    assert read_call('lora(rank=8, alpha=-1.5)') == ('lora', {'rank': 8, 'alpha': -1.5})


_WHOLE = st.integers(1, 10**6)
_CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        'lr': st.floats(1e-12, 1e6),
        'warmup': st.floats(0, 1e6),
        'seed': st.integers(0, 2**31),
        'accumulate': _WHOLE,
        'best': st.none() | st.text(),
        'duration': st.integers(1, 99).map('{} steps'.format),
        'schedule': st.sampled_from(['linear', 'cosine', 'constant']),
        'methods': st.lists(st.sampled_from(['lora', 'select', 'ia3'])),
        'lora': st.fixed_dictionaries({}, optional={'rank': _WHOLE, 'dropout': st.floats(0, 1)}),
        'mesh': st.fixed_dictionaries({}, optional={'data': _WHOLE, 'tensor': _WHOLE}),
        'data': st.fixed_dictionaries(
            {},
            optional={
                'lengths': st.lists(_WHOLE).map(tuple),
                'columns': st.dictionaries(st.text(), st.text()),
                'packing': st.booleans(),
                'chat_template': st.none() | st.text(),
            },
        ),
    },
)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
@given(_CONFIGS)
def test_what_is_written_is_read_again(config):
    settings = read_settings(config)
    written = settings.to_dict()
    assert read_settings(json.loads(json.dumps(written))) == settings
    assert read_settings(written).to_dict() == written
    for name, value in config.items():
        if not isinstance(value, dict | list):
            assert getattr(settings, name) == value


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'found': {'lora': 'eva'}}, "found.lora does not take 'eva'"),
        ({'found': {'lora': {'init': 3}}}, 'found.lora.init does not take 3'),
        ({'penalties': {'l2': 'much'}}, "penalties.l2 does not take 'much'"),
        ({'rates': {'b': None}}, 'rates.b does not take None'),
        ({'data': {'columns': {'text': 4}}}, 'data.columns.text does not take 4'),
    ],
)
def test_values_in_a_mapping_are_held_to_their_type(given, said):
    with pytest.raises(SettingsError, match=said):
        read_settings(given)
