"""`peftjax generate` with a file of prompts: many adapters, continuous batching, mistakes."""

import json
import pathlib
import shutil

import jax
import pytest
from tokenizers import Tokenizer

import peftjax
from peftjax import cli
from peftjax.cli import prompts_file
from peftjax.train.data import json_lines
from tests import tiny_runs
from tests.oracle.cases import GOLDEN

LLAMA = str(GOLDEN / 'llama' / 'base')
TARGETS = r'layers/self_attn/[qv]_proj/kernel'
LINES = [
    {'prompt': 'fine film the', 'adapter': 'film'},
    {'prompt': 'cast a scene is cold', 'adapter': 2, 'max_new_tokens': 9},
    {'prompt': 'was'},
    {'prompt': 'fine film the', 'adapter': 'run'},
    {'prompt': 'was', 'adapter': 'film', 'max_new_tokens': 1},
    {'prompt': 'a weak plot', 'adapter': None},
]
TEMPLATE = (
    '{% for m in messages %}<|im_start|> {{ m.content }} <|im_end|> {% endfor %}'
    '{% if add_generation_prompt %}<|im_start|> {% endif %}'
)


def _adapter(model, seed, rank, init='kaiming'):
    tx = peftjax.lora(rank=rank, alpha=3 * rank, targets=TARGETS, init=init)
    adapter, frozen = tx.init(jax.random.key(seed), model)
    return tx, peftjax.testing.perturb(adapter, seed, 1.0), frozen


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A base, two folders of peft's files (one in a subfolder), and the folder of a run."""
    place = tmp_path_factory.mktemp('served')
    base = tiny_runs.checkpoint(place / 'base', 'tiny_llama')
    model = peftjax.load(base)
    for name, seed, rank in (('film', 1, 1), ('spam/best', 2, 4)):
        tx, adapter, _ = _adapter(model, seed, rank)
        peftjax.save_adapter(place / name, model, tx, adapter)
    peftjax.save(place / 'run/adapter', model, *_adapter(model, 3, 2, 'gaussian'))
    settings = {'model': {'source': str(base)}, 'task': 'causal_lm', 'methods': ['lora']}
    (place / 'run/config.json').write_text(json.dumps(settings))
    return place


def _adapters(folder):
    return f'{folder}/film,spam={folder}/spam/best,{folder}/run'


def _write(path, lines):
    path.write_text('\n\n'.join(json.dumps(line) for line in lines) + '\n')
    return str(path)


@pytest.mark.sampled
@pytest.mark.parametrize('rows', [1, 4])
def test_answers_are_in_order_and_those_of_each_adapter_alone(folder, rows, tmp_path, capsys):
    file = _write(tmp_path / 'p.jsonl', LINES)
    line = ['generate', str(folder / 'base'), '--prompts', file, '--adapters', _adapters(folder)]
    assert cli.main([*line, '--rows', str(rows), '--max-new-tokens', '6']) == 0
    found = [json.loads(each) for each in capsys.readouterr().out.splitlines()]
    names = ['film', 'spam', None, 'run', 'film', None]
    assert [(each['prompt'], each['adapter']) for each in found] == [
        (each['prompt'], name) for each, name in zip(LINES, names, strict=True)
    ]
    assert len({found[0]['answer'], found[3]['answer']}) == 2  # Adapters that say different things.
    alone = {'film': 'film', 'spam': 'spam/best', 'run': 'run/adapter'}
    for given, answer in zip(LINES, found, strict=True):
        name = answer['adapter']
        more = [] if name is None else ['--adapter', str(folder / alone[name])]
        most = str(given.get('max_new_tokens', 6))
        line = ['generate', str(folder / 'base'), '--prompt', given['prompt'], *more]
        assert cli.main([*line, '--max-new-tokens', most]) == 0
        assert capsys.readouterr().out == given['prompt'] + answer['answer'] + '\n'


def test_prompts_go_through_the_chat_template_and_end_where_it_ends_a_turn(
    folder, tmp_path, capsys, monkeypatch
):
    base = shutil.copytree(folder / 'base', tmp_path / 'base')
    (base / 'tokenizer_config.json').write_text(json.dumps({'chat_template': TEMPLATE}))
    backend = Tokenizer.from_file(str(base / 'tokenizer.json'))
    backend.add_special_tokens(['<|im_end|>'])
    backend.save(str(base / 'tokenizer.json'))
    seen = []
    serve = peftjax.serving.server

    def noted(model, **options):
        def served(bank, frozen, requests, key):
            seen.append((list(requests), options['eos_token_id']))
            yield from serve(model, **options)(bank, frozen, seen[0][0], key)

        return served

    monkeypatch.setattr(peftjax.serving, 'server', noted)
    file = _write(tmp_path / 'p.jsonl', LINES[:3])
    line = ['generate', str(base), '--prompts', file, '--adapters', _adapters(folder)]
    assert cli.main([*line, '--system', 'the plot', '--max-new-tokens', '4']) == 0
    answers = [json.loads(each)['answer'] for each in capsys.readouterr().out.splitlines()]
    assert answers == [each.strip() for each in answers]
    requests, ends = seen[0]
    assert ends[-1] == tiny_runs.SPECIAL.index('<|im_end|>')
    written = '<|im_start|> the plot <|im_end|> <|im_start|> was <|im_end|> <|im_start|> '
    assert requests[2].prompt == backend.encode(written, add_special_tokens=False).ids


def test_the_base_alone_answers_a_file(folder, tmp_path, capsys):
    file = _write(tmp_path / 'p.jsonl', LINES[2:3] * 3)
    line = ['generate', str(folder / 'base'), '--prompts', file, '--max-new-tokens', '5']
    assert cli.main([*line, '--rows', '2']) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert others == [first] * 2
    assert cli.main([*line[:2], '--prompt', 'was', '--max-new-tokens', '5']) == 0
    assert capsys.readouterr().out == 'was' + json.loads(first)['answer'] + '\n'


@pytest.mark.slow
def test_prompts_of_an_encoder(tmp_path, capsys):
    base = tiny_runs.checkpoint(tmp_path / 'base', 'tiny_t5')
    model = peftjax.load(base)
    tx = peftjax.lora(rank=2, targets=r'.*/(q|v)/kernel')
    adapter, _ = tx.init(jax.random.key(0), model)
    folder = tmp_path / 'ours'
    peftjax.save_adapter(folder, model, tx, peftjax.testing.perturb(adapter, 0, 2.0))
    lines = [
        {'prompt': prompt, 'adapter': name}
        for prompt in ('was', 'cast a scene is cold')
        for name in ('ours', None)
    ]
    line = ['generate', str(base), '--max-new-tokens', '5']
    more = ['--prompts', _write(tmp_path / 'p.jsonl', lines), '--adapters', str(folder)]
    assert cli.main([*line, *more, '--rows', '2']) == 0
    answers = [json.loads(each)['answer'] for each in capsys.readouterr().out.splitlines()]
    assert len(set(answers)) > 1
    for given, answer in zip(lines, answers, strict=True):
        adapter = ['--adapter', str(folder)] if given['adapter'] else []
        assert cli.main([*line, '--prompt', str(given['prompt']), *adapter]) == 0
        assert capsys.readouterr().out == answer + '\n'


def test_draws_repeat_with_their_seed(folder, tmp_path, capsys):
    file = _write(tmp_path / 'p.jsonl', LINES[:3])
    line = ['generate', str(folder / 'base'), '--prompts', file, '--adapters', _adapters(folder)]
    outputs = []
    for seed in ('1', '1', '2'):
        more = ['--temperature', '2', '--seed', seed, '--max-new-tokens', '8']
        assert cli.main([*line, *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_an_adapter_of_some_layers_is_served(folder, tmp_path, capsys):
    model = peftjax.load(folder / 'base', scan=False)
    tx = peftjax.lora(rank=2, targets=r'layers_1/self_attn/q_proj/kernel')
    adapter, _ = tx.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(adapter, 0, 1.0)
    peftjax.save_adapter(tmp_path / 'upper', model, tx, adapter)
    file = _write(tmp_path / 'p.jsonl', [{'prompt': 'was', 'adapter': 'upper'}])
    base, upper = str(folder / 'base'), str(tmp_path / 'upper')
    more = ['--max-new-tokens', '5']
    assert cli.main(['generate', base, '--prompts', file, '--adapters', upper, *more]) == 0
    answer = json.loads(capsys.readouterr().out)['answer']
    assert cli.main(['generate', base, '--prompt', 'was', '--adapter', upper, *more]) == 0
    assert capsys.readouterr().out == f'was{answer}\n'


PROMPT = '{"prompt": "was"}'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'holds no prompt'),
        ('{"prompt": 3}', 'line 1: prompt is 3; write a text'),
        ('{"adapter": "film"}', 'line 1: prompt is None'),
        (f'{PROMPT}\n\n{{"promt": "a"}}', "line 3: unknown field 'promt'; near name: prompt"),
        (f'{PROMPT}\n[1]', "line 2: '[1]' is no object"),
        (f'{PROMPT}\n{{', 'line 2: is not JSON'),
        ('{"prompt": "a", "prompt": "b"}', 'line 1: has a key that occurs twice'),
        ('[' * 100_000, 'line 1: '),
        ('{"prompt": "a", "max_new_tokens": 0}', 'line 1: max_new_tokens is 0; write a whole'),
        ('{"prompt": "a", "max_new_tokens": true}', 'line 1: max_new_tokens is True'),
        ('{"prompt": "a", "adapter": "flim"}', "no adapter 'flim'; there are 1 film, 2 spam"),
        ('{"prompt": "a", "adapter": 4}', 'line 1: no adapter 4'),
        ('{"prompt": "a", "adapter": true}', 'line 1: no adapter True'),
        (f'{PROMPT}\n{{"prompt": ""}}', 'line 2: the prompt has no tokens'),
        (f'{PROMPT}\n{{"prompt": "\\ud800"}}', 'line 2: has half of a character'),
        ('{"prompt": "\udcff"}', 'line 1: not UTF-8'),
    ],
)
def test_a_line_that_is_wrong_is_named(folder, text, message, tmp_path, capsys):
    file = tmp_path / 'p.jsonl'
    file.write_text(text, encoding='utf-8', errors='surrogateescape')
    line = ['generate', str(folder / 'base'), '--prompts', str(file)]
    assert cli.main([*line, '--adapters', _adapters(folder)]) == 2
    said = capsys.readouterr()
    assert message in said.err and str(file) in said.err and not said.out
    assert said.err.startswith('peftjax generate: ') and said.err.count('\n') == 1


def test_long_files_and_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, 'MOST_LINE', 64)
    monkeypatch.setattr(json_lines, 'MOST_BYTES', 128)
    file = tmp_path / 'p.jsonl'
    for text, line in (('"' + 'a' * 64, 1), (f'{PROMPT}\n' * 8, 8)):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf'line {line}: more than 64 bytes in a line, or 128'):
            list(json_lines.read_objects(file))
    with pytest.raises(ValueError, match='line 1: more than'):
        list(json_lines.read_objects(pathlib.Path('/dev/zero')))


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ([], 'give --prompt TEXT, or --prompts FILE'),
        (['--prompt', 'a', '--prompts', '{file}'], 'give --prompt TEXT, or --prompts FILE'),
        (['--prompt', 'a', '--adapters', 'x,y'], '--adapters needs --prompts FILE'),
        (['--prompts', '{file}', '--adapter', 'x'], 'write --adapters x'),
        (['--prompts', '{file}', '--adapters', 'x,,y'], "'' lacks a name or a folder"),
        (['--prompts', '{file}', '--adapters', 'a/x,b/x'], "two are called 'x'; write for example"),
        (['--prompts', '{file}', '--adapters', '/no/such/folder'], '/no/such/folder'),
        (['--prompts', '{file}', '--rows', '0'], "'0' is no whole number from 1"),
        (['--prompts', 'none.jsonl'], 'none.jsonl: No such file'),
        (['--prompts', '{file}', '--adapters', '{ia3},{film}'], 'must be of one method'),
    ],
)
def test_flags_that_are_wrong_are_named(folder, flags, message, tmp_path, capsys):
    file = _write(tmp_path / 'p.jsonl', LINES[2:3])
    model = peftjax.load(folder / 'base')
    tx = peftjax.ia3(targets=r'layers/self_attn/[kv]_proj/kernel')
    peftjax.save_adapter(tmp_path / 'ia3', model, tx, tx.init(jax.random.key(0), model)[0])
    names = {'file': file, 'ia3': tmp_path / 'ia3', 'film': folder / 'film'}
    line = ['generate', str(folder / 'base'), *(flag.format(**names) for flag in flags)]
    assert cli.main(line) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_no_base_of_many(folder, tmp_path, capsys):
    file = _write(tmp_path / 'p.jsonl', LINES[2:3])
    assert cli.main(['generate', str(folder / 'run'), '--prompts', file]) == 2
    assert 'with --prompts give the base model' in capsys.readouterr().err
    assert cli.main(['generate', LLAMA, '--prompts', file]) == 2
    assert 'has no tokenizer.json' in capsys.readouterr().err


def test_names_are_last_parts_or_given():
    assert prompts_file.named('a/b/,c=a/b') == {'b': 'a/b/', 'c': 'a/b'}
