"""Settings as flags: every one is there, reads as its type, and a mistake is a line."""

import dataclasses
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax.cli.config_files import ConfigFile, read_config
from peftjax.cli.settings_flags import changed, flags_of, plain, take
from peftjax.train.settings import Settings, SettingsError, read_settings

GROUPS = ('model', 'data', 'run', 'mesh')
FLAGS = {name: flag for group in GROUPS for name, flag in flags_of(group).items()}


def from_line(*argv: str, start: Settings | None = None) -> Settings:
    taken = take(argv, FLAGS, sections=True, chained=True)
    assert taken.left == []
    return changed(Settings() if start is None else start, taken.changes, taken.methods)


def test_every_setting_is_a_flag_with_help():
    names = set()
    for name, kind in typing.get_type_hints(Settings).items():
        if dataclasses.is_dataclass(kind):
            names |= {f'{name}.{field.name}' for field in dataclasses.fields(kind)}
        elif name != 'sections':
            names.add(name)
    assert names == set(FLAGS)
    assert not [name for name, flag in FLAGS.items() if flag.help.startswith(' (')]


@pytest.mark.parametrize(
    ('argv', 'name', 'value'),
    [
        (['--lr', '3e-4'], 'lr', 3e-4),
        (['--lr=1'], 'lr', 1.0),
        (['--best', '-loss'], 'best', '-loss'),
        (['--best', 'none'], 'best', None),
        (['--model.scan', 'false'], 'model.scan', False),
        (['--data.packing'], 'data.packing', True),
        (['--data.packing', '--lr', '1'], 'data.packing', True),
        (['--data.lengths', '64,128'], 'data.lengths', (64, 128)),
        (['--data.lengths=(8,)'], 'data.lengths', (8,)),
        (['--data.labels', '["a,b", "c"]'], 'data.labels', ('a,b', 'c')),
        (['--data.columns', 'text=a,label=3'], 'data.columns', {'text': 'a', 'label': '3'}),
        (['--data.columns.text', '7'], 'data.columns', {'text': '7'}),
        (['--data.options.tau', '0.5'], 'data.options', {'tau': 0.5}),
        (['--penalties', 'orthogonality=0.1'], 'penalties', {'orthogonality': 0.1}),
        (['--data.batch-size', '4'], 'data.batch_size', 4),
        (['--trackers', ''], 'trackers', ()),
        (['--methods', 'lora,select'], 'methods', ('lora', 'select')),
        (['--lora.rank', '4'], 'sections', {'lora': {'rank': 4}}),
        (['--lora.targets', 'q,v'], 'sections', {'lora': {'targets': ['q', 'v']}}),
        (['--lora.targets', 'x/(q|v)'], 'sections', {'lora': {'targets': 'x/(q|v)'}}),
        (['--lora.rslora'], 'sections', {'lora': {'rslora': True}}),
        (['--adamw.weight_decay', '0.1'], 'sections', {'adamw': {'weight_decay': 0.1}}),
        (['--lr', '1', '--lr', '2'], 'lr', 2.0),
    ],
)
def test_a_flag_reads_as_the_type_of_its_setting(argv, name, value):
    found = from_line(*argv)
    for part in name.split('.'):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--lr', 'fast'], "--lr does not take 'fast'; write for example --lr 1e-3"),
        (['--lr', 'nan'], '--lr is nan; it must be a finite number'),
        (['--lr'], '--lr needs a value, for example --lr 1e-3'),
        (['--lr', '--seed', '1'], '--lr needs a value'),
        (['--seed', '1.5'], "--seed does not take '1.5'"),
        (['--model.scan', 'maybe'], "--model.scan does not take 'maybe'"),
        (['--data.lengths', 'a,b'], "--data.lengths does not take 'a'"),
        (['--data.columns', 'text'], "--data.columns does not take 'text'"),
        (['--rates.lora', 'x'], "--rates.lora does not take 'x'"),
        (['--penalties', 'a=b'], "--penalties.a does not take 'b'"),
        (['--lora.alpha', 'abc'], "--lora.alpha does not take 'abc'; write a number"),
        (['--data.sorce', 'x'], "no setting 'data.sorce'; near names: ['data.source'"),
        (['--lorra.rank', '4'], "no setting 'lorra'"),
        (['--lora.rnk', '4'], "no setting 'lora.rnk'; near names: ['lora.rank'"),
        (
            ['--adamw.weight_dcay', '4'],
            "no setting 'adamw.weight_dcay'; near names: ['adamw.weight_decay'",
        ),
        (['--method', 'lorra'], "no method 'lorra'; near names: lora"),
        (['--method', 'lora(rank=f())'], 'does not read as a method'),
        (['--method', '__import__("os")'], 'does not read as a method'),
        (['--method', 'load'], "no method 'load'"),
    ],
)
def test_a_wrong_flag_is_a_line_with_what_to_write(argv, message):
    with pytest.raises(SettingsError) as error:
        from_line(*argv)
    assert message in str(error.value) and '\n' not in str(error.value)


def test_what_is_no_setting_is_left_in_its_order():
    line = ['run', '--lr', '1', '--out', 'a.csv', '--workdir=d', '--', '--lr', '2']
    taken = take(line, FLAGS, sections=False)
    assert taken.left == ['run', '--out', 'a.csv', '--workdir=d', '--', '--lr', '2']
    assert taken.changes == {'lr': 1.0}


def test_methods_replace_those_of_the_config_and_their_arguments():
    start = read_settings(
        {'methods': ['lora', 'select'], 'lora': {'rank': 8}, 'select': {'targets': 'x'}}
        | {'adamw': {'weight_decay': 0.1}}
    )
    one = from_line('--method', 'dora(rank=2)', '--method', 'select', start=start)
    assert one.methods == ('dora', 'select')
    assert one.sections == {
        'dora': {'rank': 2},
        'select': {'targets': 'x'},
        'adamw': {'weight_decay': 0.1},
    }
    two = from_line('--method', 'lora(alpha=4)', '--lora.rank', '3', start=start)
    assert two.section('lora') == {'alpha': 4, 'rank': 3}


_PLAIN = st.none() | st.booleans() | st.integers()
_PLAIN |= st.floats(allow_nan=False, allow_infinity=False)


@given(st.recursive(_PLAIN, st.lists))
def test_plain_values_read_as_python_writes_them(value):
    assert plain(repr(value)) == value


@given(st.text())
def test_any_text_reads_as_something(text):
    plain(text)
    take([f'--lora.rank={text}'], FLAGS, sections=True)


def test_a_config_is_python_json_toml_or_a_run(tmp_path):
    python = tmp_path / 'a.py'
    python.write_text('def get_config(arg=None):\n    return {"lr": 0.5, "best": arg}\n')
    assert read_config(f'{python}:f1,x=2').best == 'f1,x=2'
    assert read_config(str(python)).best is None
    (tmp_path / 'a.toml').write_text('lr = 0.5\n[data]\nlengths = [8, 16]')
    assert read_config(str(tmp_path / 'a.toml')).data.lengths == (8, 16)
    (tmp_path / 'config.json').write_text(json.dumps(Settings(seed=4).to_dict()))
    assert read_config(str(tmp_path)) == Settings(seed=4)
    assert ConfigFile.of('c:/a.py') == ConfigFile('c:/a.py')


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('a.py', 'x = 1', 'has no function get_config'),
        ('a.py', 'def get_config():\n    return nothing', 'a.py, line 2: NameError'),
        ('a.py', 'def get_config(:', 'SyntaxError'),
        ('a.py', 'def get_config():\n    return {"lrr": 1}', "no setting 'lrr'"),
        ('a.json', '{"lr": ', 'is not valid json'),
        ('a.json', '[1]', 'write names and values, such as'),
        ('a.toml', 'lr == 1', 'is not valid toml'),
        ('a.yaml', 'lr: 1', 'is no .py, .json or .toml file'),
    ],
)
def test_a_config_that_is_wrong_is_a_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError) as error:
        read_config(str(tmp_path / name))
    assert message in str(error.value)


def test_a_config_that_is_not_there_is_named():
    with pytest.raises(SettingsError, match=r'none\.py does not exist'):
        read_config('none.py:paper')
