"""Decoders on tasks of lm-eval: the numbers are those of the model's own probabilities."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import cli
from peftjax.evaluation import harness
from peftjax.evaluation.scorer import Piece, Scorer, until_end
from tests import tiny_runs

LENGTH = 12


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> Path:
    return tiny_runs.checkpoint(tmp_path_factory.mktemp('base') / 'llama', 'tiny_llama')


@pytest.fixture(scope='module')
def adapted(base):
    """A decoder with an adapter that is far from its start."""
    model = peftjax.load(base)
    transform = peftjax.lora(rank=2, targets='all-linear')
    adapter, frozen = transform.init(jax.random.key(0), model)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(adapter))))
    moved = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), adapter
    )
    return model, transform, moved, frozen


@pytest.fixture(scope='module')
def scorer(adapted) -> Scorer:
    return Scorer(*adapted, length=LENGTH, batch_size=3)


def direct(adapted, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """The log-likelihood of a continuation, from the logits of its row alone."""
    model, transform, adapter, frozen = adapted
    ids = np.asarray([[*context, *continuation]], np.int32)[:, -(LENGTH + 1) :]
    logits = peftjax.adapt(model, transform)(adapter, frozen, input_ids=jnp.asarray(ids[:, :-1]))
    logs = np.asarray(jax.nn.log_softmax(logits[0].astype(jnp.float32)))[-len(continuation) :]
    total = sum(float(row[token]) for row, token in zip(logs, continuation, strict=True))
    return total, logs.argmax(-1).tolist() == list(continuation)


def test_scores_are_sums_of_log_probabilities_whatever_shares_the_batch(adapted, scorer):
    draw = np.random.default_rng(0)
    pieces = [
        Piece(draw.integers(4, 20, draw.integers(1, 20)).tolist(), draw.integers(4, 20, n).tolist())
        for n in (1, 2, 5, LENGTH, 3, 1, 4)
    ]
    for piece, found in zip(pieces, scorer.score(pieces), strict=True):
        total, greedy = direct(adapted, *piece)
        assert found.total == pytest.approx(total, abs=1e-4)
        assert found.greedy == greedy
    assert scorer.score([]) == []


def test_the_greedy_continuation_is_known_as_such(adapted, scorer):
    model, transform, adapter, frozen = adapted
    ids = jnp.asarray([[5, 6, 7]])
    logits = peftjax.adapt(model, transform)(adapter, frozen, input_ids=ids)
    best = int(logits[0, -1].argmax())
    found = scorer.score([Piece([5, 6, 7], [best]), Piece([5, 6, 7], [best - 1])])
    assert [each.greedy for each in found] == [True, False]


def test_what_is_written_is_what_the_generator_writes(adapted, scorer):
    model, transform, adapter, frozen = adapted
    prompts = [[5, 6, 7, 8], [9], [4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
    options = {'count': 4, 'sampling': peftjax.Sampling(), 'key': jax.random.key(0)}
    found = scorer.write(prompts, ends=(), **options)
    for prompt, tokens in zip(prompts, found, strict=True):
        ids = jnp.asarray([prompt[-(LENGTH - 4) :]])
        alone = peftjax.generator(model, transform)(adapter, frozen, ids, max_new_tokens=4)
        assert tokens == alone[0].tolist()
    ended = scorer.write(prompts, ends=(found[0][1],), **options)
    assert ended[0] == until_end(found[0], (found[0][1],))


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda s: s.score([Piece([1], [2] * (LENGTH + 1))]), 'a continuation has 13 tokens'),
        (
            lambda s: s.write(
                [[1]], count=LENGTH, ends=(), sampling=peftjax.Sampling(), key=jax.random.key(0)
            ),
            '12 new tokens leave no place',
        ),
    ],
)
def test_a_row_that_does_not_fit_is_an_error(scorer, call, message):
    with pytest.raises(ValueError, match=message):
        call(scorer)


def test_a_model_that_is_no_decoder_is_refused(tmp_path):
    model = peftjax.load(tiny_runs.checkpoint(tmp_path / 'bert', 'tiny_bert'))
    method = peftjax.chain()
    with pytest.raises(ValueError, match='lm-eval scores decoders'):
        Scorer(model, method, (), method.freeze(model, ()), length=8, batch_size=1)


@pytest.mark.parametrize(
    ('text', 'until', 'expected'),
    [
        ('4. Next: 5', ['Next', '. '], '4'),
        ('one\ntwo', '\n', 'one'),
        ('whole', ['', 'x'], 'whole'),
        ('whole', None, 'whole'),
    ],
)
def test_answers_end_at_the_first_stop_text(text, until, expected):
    assert harness._before(text, until) == expected


# lm-eval brings 36 packages: `nox --session lm_eval` installs it, and fails where it is missing.

QUESTIONS = ['fine grand', 'a', 'the plot was', 'dull dull warm', 'film the scene is flat']
CHOICES = ['film is fine', 'dull', 'the plot was weak']


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder with three tasks of lm-eval on a table of ours."""
    lines = [{'q': text, 'choices': CHOICES, 'gold': n % 3} for n, text in enumerate(QUESTIONS)]
    (tmp_path / 'data.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    common = (
        'dataset_path: json\n'
        f'dataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}}}\n'
        'test_split: test\n'
    )
    kinds = {
        'own_choice': 'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_target: gold\n'
        'doc_to_choice: choices\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n',
        'own_rolling': 'output_type: loglikelihood_rolling\ndoc_to_text: ""\n'
        'doc_to_target: "{{q}}"\nmetric_list: [{metric: byte_perplexity}]\n',
        'own_answer': 'output_type: generate_until\ndoc_to_text: "{{q}}"\n'
        'doc_to_target: "fine"\ngeneration_kwargs: {until: [film], max_gen_toks: 3}\n'
        'metric_list: [{metric: exact_match}]\n',
    }
    for name, text in kinds.items():
        (tmp_path / f'{name}.yaml').write_text(f'task: {name}\n{common}{text}')
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings('default')
def test_a_local_task_scores_what_the_probabilities_say(adapted, tasks):
    pytest.importorskip('lm_eval')
    model = adapted[0]
    language = harness.language_model(*adapted, batch_size=2, max_length=LENGTH)
    found = harness.evaluate_tasks(
        language, ['own_choice', 'own_rolling', 'own_answer'], include=tasks
    )
    # lm-eval puts a blank between question and choice, and splits tokens of the whole text.
    scores = []
    for question in QUESTIONS:
        context = model.tokenizer.encode(question)
        whole = [model.tokenizer.encode(f'{question} {choice}') for choice in CHOICES]
        scores.append([direct(adapted, context, each[len(context) :])[0] for each in whole])
    gold = [n % 3 for n in range(len(QUESTIONS))]
    right = [int(np.argmax(row)) == n for row, n in zip(scores, gold, strict=True)]
    assert found['own_choice']['acc,none'] == pytest.approx(np.mean(right))
    lengths = np.asarray([len(choice) for choice in CHOICES])
    normed = [int(np.argmax(row / lengths)) == n for row, n in zip(scores, gold, strict=True)]
    assert found['own_choice']['acc_norm,none'] == pytest.approx(np.mean(normed))
    prefix = language.prefix_token_id
    total = sum(direct(adapted, [prefix], model.tokenizer.encode(text))[0] for text in QUESTIONS)
    size = sum(len(text.encode()) for text in QUESTIONS)
    assert found['own_rolling']['byte_perplexity,none'] == pytest.approx(np.exp(-total / size))
    assert 0 <= found['own_answer']['exact_match,none'] <= 1


@pytest.mark.slow
@pytest.mark.filterwarnings('default')
def test_windows_of_a_long_text_count_each_token_once(adapted):
    instance = pytest.importorskip('lm_eval.api.instance').Instance
    language = harness.language_model(*adapted, batch_size=2, max_length=LENGTH)
    text = ' '.join(np.random.default_rng(2).choice(tiny_runs.WORDS, 31))
    request = instance('loglikelihood_rolling', {}, (text,), 0)
    ids = adapted[0].tokenizer.encode(text)
    row = [language.prefix_token_id, *ids]
    expected = 0.0
    for start in range(0, len(ids), LENGTH):  # a token of context, and then full windows
        window = row[max(0, min(start, len(ids) - LENGTH)) : start + LENGTH + 1]
        new = len(ids[start : start + LENGTH])
        expected += direct(adapted, window[:-new], window[-new:])[0]
    assert language.loglikelihood_rolling([request]) == [pytest.approx(expected, abs=1e-3)]


@pytest.mark.slow
@pytest.mark.filterwarnings('default')
def test_the_command_evaluates_a_base_on_a_task(base, tasks, capsys):
    pytest.importorskip('lm_eval')
    line = ['evaluate', str(base), '--tasks', 'own_choice', '--include', str(tasks)]
    assert cli.main([*line, '--limit', '3', '--out', str(tasks / 'scores.json')]) == 0
    scores = json.loads((tasks / 'scores.json').read_text())
    assert 0 <= scores['own_choice/acc'] <= 1
    assert 'own_choice/acc ' in capsys.readouterr().out
    assert cli.main([*line[:3], 'own_choise', '--include', str(tasks)]) == 2
    assert "lm-eval has no task 'own_choise'" in capsys.readouterr().err
