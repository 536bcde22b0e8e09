"""Commands on the work folder of a run: from a table to an adapter in another library."""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import peftjax
from peftjax import cli
from peftjax.train.tasks import registry
from tests import tiny_runs
from tests.oracle.cases import GOLDEN

ROOT = Path(__file__).parents[1]
# What the extra `train` installs beside the library.
EXTRA = (
    'ml_collections grain orbax tensorboardX matplotlib jinja2 PIL pyarrow filelock '
    'sklearn sacrebleu rouge_score nervaluate'
).split()


def write_table(path: Path) -> None:
    """Texts whose first word decides their class."""
    draw = random.Random(0)
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['text', 'label'])
        for number in range(240):
            good = draw.random() < 0.5
            words = [draw.choice(tiny_runs.WORDS[0 if good else 4 :][:4])]
            words += draw.choices(tiny_runs.WORDS[8:], k=draw.randint(2, 6))
            writer.writerow([' '.join([*words, str(number)]), 'ham' if good else 'spam'])


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A folder with a table, a base, and a run that was trained from both by one command."""
    folder = tmp_path_factory.mktemp('run')
    write_table(folder / 'sms.csv')
    base = tiny_runs.checkpoint(folder / 'bert', 'tiny_bert')
    line = ['train', '--model.source', str(base), '--data.source', str(folder / 'sms.csv')]
    line += ['--method', 'lora(rank=2)', '--lr', '1e-2', '--data.batch-size', '8']
    line += ['--workdir', str(folder / 'run'), '--trackers', '']
    assert cli.main(line) == 0
    return folder


def test_a_table_is_trained_on_with_one_command_and_used_with_the_next(trained, capsys):
    run = trained / 'run'
    assert json.loads((run / 'config.json').read_text())['data']['labels'] == ['ham', 'spam']
    assert cli.main(['predict', str(run), '--text', 'fine plot', '--text', 'cold plot']) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row['text'] for row in rows] == ['fine plot', 'cold plot']
    assert [row['label'] for row in rows] == ['ham', 'spam']


def test_the_line_that_a_run_ends_with_works(trained, capsys):
    run = str(trained / 'run')
    assert cli.main(['train', '--config', run, '--workdir', run]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    use, _, text = line.removeprefix('use it: peftjax ').partition(' --text ')
    assert cli.main([*use.split(), '--text', text.strip('"')]) == 0
    assert json.loads(capsys.readouterr().out)['label'] in ('ham', 'spam')


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
def test_a_table_is_predicted_row_by_row_in_its_order(trained, suffix, tmp_path, capsys):
    texts = ['fine "film", a', 'cold cast', 'a', 'dull\nthe scene']
    new, out = tmp_path / 'new.jsonl', tmp_path / f'out{suffix}'
    lines = [json.dumps({'text': text, 'label': 'ham', 'n': n}) for n, text in enumerate(texts)]
    new.write_text('\n'.join(lines))
    assert cli.main(['predict', str(trained / 'run'), str(new), '--out', str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with out.open(newline='') as file:
        rows = list(csv.DictReader(file) if suffix == '.csv' else map(json.loads, file))
    assert [(row['text'], int(row['n'])) for row in rows] == [(t, n) for n, t in enumerate(texts)]
    assert [row['predicted_label'] for row in rows][:2] == ['ham', 'spam']
    assert {row['label'] for row in rows} == {'ham'}


def test_predictions_are_those_of_the_adapter_computed_directly(trained, capsys):
    folder = peftjax.train.RunFolder(trained / 'run')
    model = folder.load_model()
    transform, adapter, frozen = folder.load_adapter(model)
    ids = np.asarray([model.tokenizer.encode('warm scene was flat')], np.int32)
    logits = peftjax.adapt(model, transform)(adapter, frozen, input_ids=ids)
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert cli.main(['predict', str(trained / 'run'), '--text', 'warm scene was flat']) == 0
    row = json.loads(capsys.readouterr().out)
    assert row['label'] == ['ham', 'spam'][int(np.argmax(expected))]
    assert row['score'] == pytest.approx(float(expected.max()), rel=1e-4)


def test_evaluate_gives_the_scores_that_the_run_ended_with(trained, capsys, tmp_path):
    result = json.loads((trained / 'run/result.json').read_text())
    out = tmp_path / 'scores.json'
    line = ['evaluate', str(trained / 'run'), '--which', 'last', '--out', str(out)]
    assert cli.main(line) == 0
    scores = json.loads(out.read_text())
    assert scores['loss'] == pytest.approx(result['test/loss'], rel=1e-5)
    assert f'{scores["loss"]:.4f}' in capsys.readouterr().out
    # The same settings flags as everywhere.
    assert cli.main([*line[:2], '--split', 'validation', '--data.eval_batch_size', '7']) == 0


def test_a_run_is_merged_converted_and_inspected_by_its_folder(trained, tmp_path, capsys):
    run, merged, theirs = str(trained / 'run'), tmp_path / 'merged', tmp_path / 'peft'
    assert cli.main(['merge', run, str(merged)]) == 0
    assert cli.main(['convert', run, str(theirs), '--to', 'peft']) == 0
    folder = peftjax.train.RunFolder(run)
    model = folder.load_model()
    transform, adapter, frozen = folder.load_adapter(model)
    ids = np.asarray([[5, 6, 12, 17, 13]], np.int32)
    expected = peftjax.adapt(model, transform)(adapter, frozen, input_ids=ids)
    whole = peftjax.load(merged, task='classification')
    np.testing.assert_allclose(whole.apply(whole.params, input_ids=ids), expected, atol=1e-5)
    other = peftjax.load_adapter(theirs, model)
    found = peftjax.adapt(model, other.transform)(other.adapter, other.frozen, input_ids=ids)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    capsys.readouterr()
    assert cli.main(['inspect', run]) == 0
    text = capsys.readouterr().out
    assert 'lora(rank=2' in text and 'test/accuracy' in text and str(trained / 'bert') in text


def test_the_folder_of_an_adapter_of_ours_goes_beside_its_base(trained, tmp_path):
    base, adapter = str(trained / 'bert'), str(trained / 'run/adapter')
    line = ['merge', base, adapter, str(tmp_path / 'a'), '--num-labels', '2']
    assert cli.main(line) == 0
    assert cli.main(['merge', str(trained / 'run'), str(tmp_path / 'b')]) == 0
    one, two = (peftjax.load(tmp_path / name, task='classification').params for name in 'ab')
    for mine, theirs in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (['predict', '{run}'], 'give a file, or --text TEXT'),
        (['predict', '{run}', 'none.csv'], 'none.csv does not exist'),
        (['predict', '{run}', '--text', 'a', '--out', 'a.txt'], 'neither .jsonl nor .csv'),
        (['predict', '{table}', '--text', 'a'], 'is no work folder of a run'),
        (['predict', '{run}', '{run}/other.jsonl'], "has no 'text'"),
        (['evaluate', '{run}', '--split', 'tset'], "no split 'tset'; it has train"),
        (['evaluate', '{run}', '--data.sorce', 'x'], 'unknown flag --data.sorce'),
        (['evaluate', '{run}', '--lr', '1'], 'unknown flag --lr'),
        (['generate', '{run}', '--prompt', 'a'], 'use a decoder that has them'),
        (['export', '{run}', 'a.gguf'], 'a GGUF adapter is written for Llama'),
        (['train', '--workdir', 'w'], 'no base model is given'),
        (['train', '--model.source', 'x'], 'no work folder is given'),
        (['train', '--model.source', 'no/such', '--workdr', 'w'], 'unknown flag --workdr; near'),
        (['train', '--lrr', '1'], 'unknown flag --lrr; near names: --lr'),
        (['train', 'configs/lora.py'], "unexpected argument 'configs/lora.py'"),
        (['train', '--config', 'none.py'], 'none.py does not exist'),
        (['sweep', '--workdir', 'w'], '--config is missing'),
        (['reproduce'], 'give a row, or --list'),
        (['reproduce', 'lora.rte'], 'no work folder is given'),
        (['reproduce', 'lora.rt', '--workdir', 'w'], "no row 'lora.rt'; near"),
        (['reproduce', '--list', 'none.*'], "no row matches 'none.*'"),
        (['sweep', '--config', 'a.py', '--workdir', 'w'], 'either --sweep NAME or --search'),
        (['sweep', '--halving', '1'], "'1' is no whole number from 2 to"),
    ],
)
def test_a_mistake_is_one_line_and_the_status_2(line, message, trained, capsys):
    (trained / 'run/other.jsonl').write_text('{"txt": "a"}')
    places = {'run': trained / 'run', 'table': trained / 'sms.csv'}
    assert cli.main([part.format(**places) for part in line]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith(f'peftjax {line[0]}: ')
    assert len(error.splitlines()) == 1


def test_show_prints_the_settings_and_trains_nothing(capsys, tmp_path):
    (tmp_path / 'a.toml').write_text('lr = 0.5\n[data]\nlengths = [8]')
    line = ['train', '--config', str(tmp_path / 'a.toml'), '--lora.rank', '3', '--show']
    assert cli.main(line) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown['lr'] == 0.5 and shown['lora'] == {'rank': 3} and shown['data']['lengths'] == [8]


def test_the_library_commands_do_without_the_extra_train():
    code = (
        'import sys\n'
        f'extra = {EXTRA!r}\n'
        'class Missing:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name.partition(".")[0] in extra:\n'
        '            raise ModuleNotFoundError(f"No module named {name!r}", name=name)\n'
        'sys.meta_path.insert(0, Missing())\n'
        'from peftjax import cli\n'
        f'base, adapter = {str(GOLDEN / "llama/base")!r}, {str(GOLDEN / "llama/lora")!r}\n'
        'for line in (\n'
        '    ["inspect", base, "--adapter", adapter],\n'
        '    ["plan", base, "--batch", "1", "--length", "4", "--method", "lora"],\n'
        '    ["train", "--lr", "1"],\n'
        '):\n'
        '    print("status", cli.main(line))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    results = [line for line in done.stdout.splitlines() if line.startswith('status')]
    assert results == ['status 0', 'status 0', 'status 2']
    assert "which is not installed: pip install 'peftjax[train]'" in done.stderr


def test_a_task_without_predictions_says_so(trained, monkeypatch, capsys):
    kind = registry.TASKS['classification']

    def silent(settings, model):
        return peftjax.train.Task(splits={}, totals=kind.make(settings, model).totals)

    tasks = {**registry.TASKS, 'classification': kind._replace(make=silent)}
    monkeypatch.setattr(registry, 'TASKS', tasks)
    assert cli.main(['predict', str(trained / 'run'), '--text', 'a']) == 2
    assert 'this task makes no predictions' in capsys.readouterr().err


def test_reproduce_lists_what_is_missing_and_runs_every_seed_of_a_row(trained, tmp_path, capsys):
    source, table = str(trained / 'bert'), str(trained / 'sms.csv')
    papers = tmp_path / 'papers.toml'
    papers.write_text(
        '[own.sms]\n'
        'paper = {title = "Ours", arxiv = "0000.00000", table = "table 1"}\n'
        'family = "bert"\n'
        'protocol = {seeds = 2, statistic = "median", checkpoint = "last"}\n'
        'published = {split = "test", metric = "accuracy", value = 99.5, percent = true}\n'
        f'model = {{source = "{source}"}}\ndata = {{source = "{table}"}}\n'
        'lora = {rank = 2}\nduration = "2 steps"\ntrackers = []\n'
    )
    assert cli.main(['reproduce', '--papers', str(papers), '--list']) == 0
    assert 'nothing: it can run' in capsys.readouterr().out
    line = ['reproduce', 'own.sms', '--papers', str(papers), '--workdir', str(tmp_path / 'w')]
    assert cli.main([*line, '--lr', '1e-4']) == 0
    text = capsys.readouterr().out
    assert '99.5' in text and 'deviation over seeds' in text
    for seed in (0, 1):
        config = json.loads((tmp_path / f'w/own.sms/seed_{seed}/config.json').read_text())
        assert config['seed'] == seed and config['lr'] == 1e-4
