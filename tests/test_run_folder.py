"""What a run left, as commands and notebooks take it."""

import json
from typing import Any

import jax
import numpy as np
import pytest

import peftjax
from peftjax import cli
from peftjax.train.run_folder import RunFolder, Which
from peftjax.train.settings import SettingsError
from tests import tiny_runs
from tests.whole_runs import run_config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    config = tiny_runs.film_reviews(tmp_path_factory.mktemp('reviews'))
    folder = tmp_path_factory.mktemp('run') / 'run'
    return folder, run_config(config, folder)


def test_the_folder_computes_what_the_run_did(run):
    path, result = run
    folder = RunFolder(path)
    assert RunFolder.is_one(path) and dict(folder.result) == dict(result)
    model = folder.load_model()
    task = folder.load_task(model)
    kinds: list[tuple[Which, str]] = [('best', 'best/'), ('last', '')]
    for which, prefix in kinds:
        restored = folder.load_adapter(model, which)
        scores = peftjax.train.evaluate(
            model, restored.transform, restored.adapter, restored.frozen, task
        )
        for name in ('loss', 'accuracy'):
            assert scores[name] == pytest.approx(result[f'{prefix}test/{name}'], rel=1e-6)


def test_predictions_need_no_data(run):
    folder = RunFolder(run[0])
    model = folder.load_model()
    task = folder.load_task(model, data=False)
    assert not any(task.splits.values())
    restored = folder.load_adapter(model)
    records = [{'text': 'a fine film'}, {'text': 'dull'}]
    answers = peftjax.train.predict(
        model, restored.transform, restored.adapter, restored.frozen, task, records
    )
    assert len(answers) == 2 and all(answer for answer in answers)


def test_the_card_says_how_to_use_the_adapter_and_it_works(run):
    card = (run[0] / 'README.md').read_text(encoding='utf-8')
    code = card.partition('```python\n')[2].partition('```')[0]
    names: dict[str, Any] = {'peftjax': peftjax}
    exec(code, names)  # the card's own code, as a reader would paste it
    logits = names['predict'](
        names['adapter'], names['frozen'], input_ids=np.full((1, 4), 5, np.int32)
    )
    assert logits.shape == (1, 2)
    assert f'seed {RunFolder(run[0]).settings.seed}' in card and 'peftjax ' in card


def test_the_last_adapter_is_the_state_that_training_ended_with(run):
    folder = RunFolder(run[0])
    model = folder.load_model()
    best, last = (folder.load_adapter(model, which).adapter for which in ('best', 'last'))
    assert jax.tree.structure(best) == jax.tree.structure(last)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'is no work folder of a run: it has no config.json'),
        ('{"model', 'config.json is not JSON'),
        ('[]', 'holds a JSON list, expected an object'),
        (json.dumps({'model': {'sorce': 'x'}}), r"no setting 'model.sorce'"),
        ('\udcff', 'is not JSON'),
        ('[' * 100_000, 'is nested too deeply'),
    ],
)
def test_folders_that_hold_no_run_are_refused(tmp_path, content, message):
    if content is not None:
        data = content.encode('utf-8', 'surrogateescape')
        (tmp_path / 'config.json').write_bytes(data)
    with pytest.raises(SettingsError, match=message):
        RunFolder(tmp_path)
    assert not RunFolder.is_one(tmp_path)


def test_a_run_that_has_no_adapter_yet_says_so(run, tmp_path):
    content = (run[0] / 'config.json').read_text(encoding='utf-8')
    (tmp_path / 'config.json').write_text(content, encoding='utf-8')
    folder = RunFolder(tmp_path)
    assert folder.result == {}
    with pytest.raises(SettingsError, match='has no adapter/ yet'):
        folder.load_adapter(folder.load_model())


@pytest.mark.parametrize('form', ['peft', 'adapterhub'])
def test_a_head_on_the_mean_of_tokens_is_not_written_for_other_libraries(run, tmp_path, form):
    """They would read the first token with the same weights."""
    path, result = run
    folder = RunFolder(path)
    model = folder.load_model()
    tx, adapter, _ = folder.load_adapter(model)
    with pytest.raises(ValueError, match="the mean of all tokens.*pooling='first'"):
        peftjax.save_adapter(tmp_path / 'a', model, tx, adapter, form=form)
    assert not (tmp_path / 'a').exists() and not (path / 'adapter_peft').exists()
    assert 'the mean of all tokens' in str(result['adapter_peft'])
    assert 'the mean of all tokens' in (path / 'README.md').read_text(encoding='utf-8')


def test_merging_such_a_run_says_who_can_read_it(run, tmp_path, capsys):
    path, _ = run
    assert cli.main(['merge', str(path), str(tmp_path / 'merged')]) == 0
    assert 'read it with peftjax alone: ' in capsys.readouterr().out
    merged = peftjax.load(tmp_path / 'merged', task='classification', pooling='mean')
    folder = RunFolder(path)
    model = folder.load_model()
    tx, adapter, frozen = folder.load_adapter(model)
    ids = np.full((1, 4), 5, np.int32)
    np.testing.assert_allclose(
        merged.apply(merged.params, input_ids=ids),
        peftjax.adapt(model, tx)(adapter, frozen, input_ids=ids),
        atol=1e-5,
    )
    assert merged.only_here
