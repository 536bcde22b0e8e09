"""The table of published results: what it holds, what is missing here, and runs beside it."""

import functools
import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import peftjax
from peftjax import cli, reproduce
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig, RobertaConfig
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.train.build import build_transform
from peftjax.train.found import find
from peftjax.train.settings import SettingsError
from peftjax.train.task import Task

TABLE = Path(__file__).parents[1] / 'configs' / 'papers.toml'
ROWS = reproduce.table(TABLE)
QUIET = Console(quiet=True)
SHAPES = {  # of published models
    'FacebookAI/roberta-base': RobertaConfig(50265, 768, 12, 12, 3072),
    'FacebookAI/roberta-large': RobertaConfig(50265, 1024, 24, 16, 4096),
    'google-bert/bert-base-uncased': BertConfig(30522, 768, 12, 12, 3072),
    # Its own family is not built; the names of its matrices would be those of BERT.
    'microsoft/deberta-v3-base': BertConfig(128100, 768, 12, 12, 3072),
    'huggyllama/llama-7b': LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128),
    'meta-llama/Llama-2-7b-hf': LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128),
    'meta-llama/Llama-3.2-3B': LlamaConfig(128256, 3072, 8192, 28, 24, 8, 128),
}
COUNTED = [key for key, row in ROWS.items() if row.published.trainable is not None]
SMALL = """
[lora]
a = { like = ['one'], lr = 0.1, published.value = 90.0 }
b = { like = ['one'], protocol.start = 'lora.a', differs = ['more'] }
[parts.one]
family = 'bert'
hyperparameters = 'table 2'
differs = ['something']
paper.title = 'A paper'
paper.table = 'table 1'
protocol = { seeds = 3, statistic = 'median', checkpoint = 'best' }
published = { split = 'validation', metric = 'accuracy', percent = true }
lora.rank = 4
"""


@functools.cache
def _published(source: str) -> peftjax.Model:
    """The published model, without weights."""
    shape = SHAPES[source]
    module = Llama(shape) if isinstance(shape, LlamaConfig) else Bert(shape, outputs=2)
    ids = dict.fromkeys(('input_ids', 'attention_mask'), jnp.zeros((2, 8), jnp.int32))
    params = jax.eval_shape(lambda key: module.init(key, **ids), jax.random.key(0))
    return peftjax.wrap(module, params['params'], ids)


def _small(tmp_path: Path, text: str = SMALL) -> Path:
    (tmp_path / 'papers.toml').write_text(text)
    return tmp_path / 'papers.toml'


def _text(shown) -> str:
    """What a console prints."""
    file = io.StringIO()
    Console(width=160, file=file).print(shown)
    return file.getvalue()


class Done(NamedTuple):
    """A run that is over."""

    result: dict[str, Any]


def _trainer(scores):
    """A trainer that takes notes, and gives the next scores."""
    calls, left = [], iter(scores)

    def train(settings, workdir, console):
        del console
        calls.append((settings, workdir))
        return Done(next(left))

    return train, calls


@pytest.mark.parametrize('key', COUNTED)
def test_the_published_count_is_what_the_method_trains_on_the_published_model(key):
    row = ROWS[key]
    model, settings = _published(row.settings.model.source), row.settings
    counts = []

    def count(model: peftjax.Model) -> None:
        task = Task(splits={}, totals=lambda forward, batch: {})
        transform = build_transform(settings, find(settings, model, task))
        counts.append(peftjax.summary(transform, model).trainable)

    jax.eval_shape(count, model)
    # The model here has a head of two classes, whatever the task.
    head = any('classifier' in path for path in model.sites.weights)
    extra = peftjax.summary(peftjax.select(r'classifier/.*'), model).trainable if head else 0
    assert [count - extra for count in counts] == [row.published.trainable]


def test_every_row_says_where_it_is_from():
    assert len(ROWS) == 130
    for row in ROWS.values():
        assert row.paper.title and row.hyperparameters and row.family
        assert row.paper.arxiv or row.paper.url
        assert row.settings.data.reader and row.settings.data.source
        assert row.published.value is None or row.published.value > 0
        if row.protocol.statistic == 'one':
            assert row.protocol.seeds == 1


def test_a_row_takes_its_parts_and_then_its_own_fields(tmp_path):
    rows = reproduce.table(_small(tmp_path))
    assert rows['lora.a'].settings.lr == 0.1
    assert rows['lora.b'].settings.section('lora') == {'rank': 4}
    assert rows['lora.b'].differs == ('something', 'more')
    assert rows['lora.b'].start == rows['lora.a']


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ("like = ['one'], lr", "like = ['on'], lr", "lora.a: no part 'on'; near ones: one"),
        ('lr = 0.1', 'lr = "a"', 'lora.a: lr does not take'),
        ('lr = 0.1', 'rl = 0.1', "lora.a: no setting 'rl'"),
        ('published.value', 'published.valeu', "published: no field 'valeu'"),
        ('value = 90.0', 'value = "a"', "value does not take 'a'"),
        ("start = 'lora.a'", "start = 'lora.b'", "start is 'lora.b'; name a row that has no start"),
        ("statistic = 'median'", "statistic = 'most'", "write 'one', 'median' or 'mean'"),
        ("checkpoint = 'best'", "checkpoint = 'first'", 'write best or last'),
        ("paper.title = 'A paper'", '', 'paper: title is missing'),
        ('[parts.one]', '[parts.one', 'is not TOML'),
    ],
)
def test_a_table_that_does_not_read_says_where(tmp_path, old, new, message):
    assert old in SMALL
    with pytest.raises(SettingsError, match=message.replace('[', r'\[')):
        reproduce.table(_small(tmp_path, SMALL.replace(old, new)))


def test_a_table_that_is_not_there_says_how_to_name_one(tmp_path):
    with pytest.raises(SettingsError, match='or give the file with --papers'):
        reproduce.table(tmp_path / 'papers.toml')


def test_an_unknown_row_has_near_ones():
    with pytest.raises(SettingsError, match="no row 'lora.ret'; near ones: lora.rte"):
        reproduce.find(ROWS, 'lora.ret')


def test_the_statistic_of_the_seeds_stands_beside_the_published_number(tmp_path):
    row = reproduce.table(_small(tmp_path))['lora.a']
    scores = [{'best/validation/accuracy': x, 'trainable': 7} for x in (0.5, 0.7, 0.9)]
    train, calls = _trainer(scores)
    result = reproduce.run(row, tmp_path, QUIET, train=train)
    assert result.values == (50.0, 70.0, 90.0) and result.value == 70.0
    assert result.deviation == pytest.approx(20.0)
    assert [settings.seed for settings, _ in calls] == [0, 1, 2]
    assert [folder for _, folder in calls] == [tmp_path / 'lora.a' / f'seed_{n}' for n in range(3)]
    shown = _text(result.show())
    for text in ('median', '70', '90 (', 'table 1', 'least and greatest', '50 90', '7'):
        assert text in shown


def test_a_row_starts_from_the_best_adapter_of_another(tmp_path):
    row = reproduce.table(_small(tmp_path))['lora.b']
    train, calls = _trainer([{}, {'best/validation/accuracy': 0.5}])
    changes = {'data.source': 'mine', 'model.source': 'tiny'}
    reproduce.run(row, tmp_path, QUIET, train=train, seeds=1, changes=changes)
    (first, folder), (second, _) = calls
    assert folder == tmp_path / 'lora.a' / 'seed_0'
    assert second.init_from == str(folder / 'adapter') and first.init_from is None
    assert first.model.source == second.model.source == 'tiny'
    assert second.data.source == 'mine' and first.data.source == ''


def test_a_mean_over_splits_and_a_score_that_is_not_there():
    row = ROWS['dora.r32']
    scores = {'test_boolq/exact_match': 0.5, 'test_piqa/exact_match': 1.0, 'test_piqa/loss': 9.0}
    assert reproduce.score(row, scores) == 0.75
    with pytest.raises(
        SettingsError, match=r'needs the score test_\*/exact_match; the run has a/loss'
    ):
        reproduce.score(row, {'a/loss': 1.0})


def test_what_is_missing_is_told_without_a_download(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError('asked the network')

    monkeypatch.setattr('socket.socket.connect', no_network)
    hub = tmp_path / 'hub'
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(hub))
    row = ROWS['lora.rte']
    lines = reproduce.missing(row)
    assert 'weights FacebookAI/roberta-base (a run downloads them)' in lines
    assert 'data hf:nyu-mll/glue:rte#{split} (a run downloads them)' in lines
    assert 'data hf:nyu-mll/glue:mnli#{split} (a run downloads them)' in lines
    assert "model family 'deberta-v2', which is not supported" in reproduce.missing(
        ROWS['boft.sst2']
    )
    (hub / 'datasets--nyu-mll--glue' / 'snapshots').mkdir(parents=True)
    assert not any(line.startswith('data') for line in reproduce.missing(row))
    [line] = [each for each in reproduce.missing(ROWS['dora.r16']) if each.startswith('data')]
    assert line == 'data LLM-Adapters (a clone of github.com/AGI-Edgerunners/LLM-Adapters)'
    assert 'nothing: it can run' in _text(reproduce.listing([row], lambda row: []))


class _Study:
    """A study as the command line sees it."""

    def reproduce(self, folder: Path) -> str:
        """Says its folder."""
        return f'done in {folder}'


def find_study(name: str) -> _Study:
    """Stands in for the studies of this repository."""
    if name != 'one':
        raise ValueError(f'there is no study {name!r}; there are study.one')
    return _Study()


def test_a_study_runs_into_its_work_folder_and_says_what_came_out(capsys):
    studies = ['--studies', 'tests.test_reproduce:find_study', '--workdir', 'runs/one']
    cli.main(['reproduce', 'study.one', *studies])
    assert capsys.readouterr().out == 'done in runs/one\n'
    for arguments, message in (
        (['study.two', *studies], "there is no study 'two'"),
        (['study.one', '--seeds', '3', *studies], 'a study has its settings in its code'),
        (['study.one', '--lr', '0.1', *studies], 'a study has its settings in its code'),
        (['study.one', '--studies', 'none_such:x', '--workdir', 'a'], "'none_such:x' cannot be"),
    ):
        assert cli.main(['reproduce', *arguments]) == 2
        assert message in capsys.readouterr().err
