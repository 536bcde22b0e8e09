"""Preferences: losses against their formulas, and the tasks on a small decoder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
from peftjax.train import evaluate, fit
from peftjax.train.data.batches import collate
from peftjax.train.losses import preference as losses
from peftjax.train.run import Run
from peftjax.train.settings import SettingsError, read_settings
from peftjax.train.task import Beside, Forward
from peftjax.train.tasks.registry import find_task
from tests.test_preference_losses import sigmoid
from tests.tiny_runs import checkpoint

TEMPLATE = (
    '{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}'
    '{% if add_generation_prompt %}<|im_start|> assistant {% endif %}'
)
PAIRS = [
    {
        'prompt': f'is the {noun} {adjective}',
        'chosen': f'the {noun} is {good}',
        'rejected': f'the {noun} is {bad} and {bad}',
    }
    for noun in ('film', 'plot', 'cast', 'scene')
    for adjective in ('the', 'a', 'is', 'was', 'fine')
    for good, bad in (('fine', 'dull'), ('grand', 'flat'))
]
SINGLES = [
    {'prompt': pair['prompt'], 'completion': pair[side], 'label': side == 'chosen'}
    for pair in PAIRS
    for side in ('chosen', 'rejected')
]


def _made(folder, task='preference', rows=PAIRS, columns=(), lengths=(32,), **options):
    folder.mkdir(exist_ok=True)
    (folder / 'all.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    if not (folder / 'llama').exists():
        checkpoint(folder / 'llama', 'tiny_llama')
    names = columns or tuple(rows[0])
    config = read_settings(
        {
            'model': {'source': str(folder / 'llama'), 'task': 'causal_lm'},
            'task': task,
            'data': {
                'source': str(folder / 'all.jsonl'),
                'columns': {name: name for name in names},
                'chat_template': TEMPLATE,
                'batch_size': 4,
                'eval_batch_size': 4,
                'lengths': list(lengths),
                'options': options,
            },
        }
    )
    model = peftjax.load(**config.model.arguments())
    return model, find_task(task)(config, model)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('preference')


def _forward(model, seed=0, scale=0.3):
    """The model with an adapter that changes it."""
    tx = peftjax.lora(rank=2, targets='all-linear')
    adapter, frozen = tx.init(jax.random.key(seed), model)
    keys = iter(jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(adapter))))
    adapter = jax.tree.map(
        lambda leaf: leaf + scale * jax.random.normal(next(keys), leaf.shape, leaf.dtype), adapter
    )
    predict = peftjax.adapt(model, tx)
    return Forward(predict, model.apply, adapter, Beside(frozen, model.params), None)


def _log_prob(run, row, number):
    """The direct way: log-softmax of the logits at every token of an answer, and how many."""
    name = f':{number}' if number else ''
    ids, targets = row[f'input_ids{name}'], row[f'targets{name}']
    real = row[f'segment_ids{name}'] > 0
    logits = np.asarray(run({'input_ids': ids[real][None]}), np.float64)[0]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    places = [t for t in range(real.sum()) if targets[t] >= 0]
    return sum(logits[t, targets[t]] for t in places), len(places)


@pytest.mark.sampled
@pytest.mark.parametrize('loss', ['dpo', 'ipo', 'orpo', 'simpo'])
def test_totals_are_those_of_each_pair_alone_computed_directly(folder, loss):
    model, task = _made(folder, loss=loss)
    forward, rows = _forward(model), task.splits['train'][:3]
    totals = task.totals(forward, collate(rows, task.lengths))
    found = []
    for row in rows:
        policy, base = (
            [_log_prob(run, row, side) for side in (0, 1)] for run in (forward, forward.reference)
        )
        sums = [jnp.asarray([lp], jnp.float32) for lp, _ in (*policy, *base)]
        means = [jnp.asarray([lp / n], jnp.float32) for lp, n in policy]
        function = getattr(losses, f'{loss}_loss')
        found.append(float(function(*(means if loss in ('orpo', 'simpo') else sums))[0]))
    assert float(totals['loss']) == pytest.approx(sum(found), rel=1e-4)
    assert float(totals['weights']) == 3.0
    assert task.needs_reference is (loss in ('dpo', 'ipo'))


@pytest.mark.sampled
@pytest.mark.parametrize('loss', ['dpo', 'orpo', 'kto'])
def test_padding_and_rows_without_weight_change_nothing(folder, loss):
    model, task = _made(folder, loss=loss)
    forward, rows = _forward(model), list(task.splits['train'][:3])
    totals = task.totals(forward, collate(rows, (32,)))
    longer = task.totals(forward, collate(rows, (48,)))
    filler = {**rows[0], 'weights': np.float32(0)}
    filled = task.totals(forward, collate([*rows, filler], (32,)))
    for name, total in totals.items():
        assert float(longer[name]) == pytest.approx(float(total), rel=1e-4, abs=1e-5), name
        assert float(filled[name]) == pytest.approx(float(total), rel=1e-4, abs=1e-5), name
    nothing = task.totals(forward, collate([filler], (32,)))
    assert {name: float(total) for name, total in nothing.items()} == dict.fromkeys(totals, 0.0)


def test_a_fresh_adapter_is_its_own_reference(folder):
    model, task = _made(folder)
    tx = peftjax.lora(rank=2, targets='all-linear')
    scores = evaluate(model, tx, *tx.init(jax.random.key(0), model), task)
    assert scores == {
        'loss': pytest.approx(np.log(2), rel=1e-5),
        'accuracy': 0.5,
        'margin': pytest.approx(0.0, abs=1e-6),
    }


@pytest.mark.sampled
@pytest.mark.parametrize('loss', ['dpo', 'ipo', 'orpo', 'simpo', 'kto'])
def test_training_prefers_the_chosen_answers_of_held_out_pairs(folder, loss):
    model, task = _made(folder, loss=loss)
    tx = peftjax.lora(rank=4, targets='all-linear')
    before = evaluate(model, tx, *tx.init(jax.random.key(0), model), task)
    done = fit(
        model, tx, task, optimizer=optax.adam(1e-2), duration='30 steps', eval_every='30 steps'
    )
    after = evaluate(model, tx, done.adapter, done.frozen, task)
    assert after['loss'] < before['loss']
    # Of KTO's single answers each has to be right, and of other losses' pairs the difference.
    assert after['accuracy'] > (0.6 if loss == 'kto' else 0.9)


def test_the_reference_is_the_base_itself_and_no_copy(folder):
    model, task = _made(folder)
    tx = peftjax.lora(rank=2, targets='all-linear')
    run = Run(
        model=model,
        transform=tx,
        task=task,
        make_optimizer=lambda _: optax.sgd(0.1),
        steps=1,
        steps_per_epoch=1,
        log_every=1,
        eval_every=1,
        save_every=1,
    )
    _, beside = run.start()
    pairs = zip(
        jax.tree.leaves(beside.reference), jax.tree.leaves(beside.frozen.params), strict=True
    )
    assert all(one is other for one, other in pairs)


def test_answers_may_be_messages_and_the_prompt_a_part_of_them(folder):
    _, task = _made(folder)
    whole = [
        {
            side: [
                {'role': 'user', 'content': pair['prompt']},
                {'from': 'gpt', 'value': pair[side]},
            ]
            for side in ('chosen', 'rejected')
        }
        for pair in PAIRS
    ]
    _, other = _made(folder.parent / 'whole', rows=whole)
    _, halves = _made(
        folder.parent / 'halves',
        rows=[
            {
                'prompt': pair['prompt'],
                **{s: [{'role': 'assistant', 'content': pair[s]}] for s in ('chosen', 'rejected')},
            }
            for pair in PAIRS
        ],
    )

    def plain(made):
        rows = [row for split in made.splits.values() for row in split]
        return sorted(str({name: np.asarray(v).tolist() for name, v in r.items()}) for r in rows)

    assert plain(task) == plain(other) == plain(halves)


def test_kto_reads_single_answers_and_pairs_them_with_other_prompts(folder):
    model, task = _made(folder.parent / 'single', 'unpaired_preference', SINGLES)
    rows = [row for split in task.splits.values() for row in split]
    assert len(rows) == len(SINGLES)
    assert sum(bool(row['desirable']) for row in rows) == len(PAIRS)
    for row in rows:
        first, second = (row[f'targets{name}'] < 0 for name in ('', ':1'))
        prompts = [
            row[n][: int(m.argmin())] for n, m in (('input_ids', first), ('input_ids:1', second))
        ]
        assert prompts[0].tolist() == prompts[1].tolist()
    # The rewards of both sides, the direct way.
    forward, two = _forward(model), rows[:2]
    totals = task.totals(forward, collate(two, task.lengths))
    ratios = [
        [_log_prob(forward, r, i)[0] - _log_prob(forward.reference, r, i)[0] for r in two]
        for i in (0, 1)
    ]
    point = max(0.0, float(np.mean(ratios[1])))
    signs = [1 if row['desirable'] else -1 for row in two]
    wanted = sum(sigmoid(-0.1 * s * (x - point)) for s, x in zip(signs, ratios[0], strict=True))
    assert float(totals['loss']) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        ({'loss': 'dop'}, SettingsError, "data.options.loss='dop'; near names: \\['dpo'"),
        ({'beta': 0.0}, SettingsError, 'beta is 0.0; write a number above 0'),
        ({'loss': 'ipo', 'gamma': 1.0}, SettingsError, 'no option data.options.gamma'),
        ({'label_smoothing': 0.5}, SettingsError, 'from 0 to below 0.5'),
        ({'lengths': (4,)}, SettingsError, 'write a greater --data.lengths'),
    ],
)
def test_mistakes_are_named(folder, change, error, words):
    with pytest.raises(error, match=words):
        _made(folder, **change)


def test_wrong_records_are_named(folder):
    talk = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'fine'}]
    other = [{'role': 'user', 'content': 'the'}, talk[1]]
    with pytest.raises(ValueError, match='may differ only in their last message'):
        rows = [{'chosen': talk, 'rejected': other, 'prompt': f'{i}'} for i in range(30)]
        _made(folder.parent / 'w1', rows=rows)
    with pytest.raises(ValueError, match='an answer without a prompt'):
        _made(
            folder.parent / 'w2',
            rows=[{'chosen': 'fine', 'rejected': f'dull {i}'} for i in range(30)],
        )
    same = [{'prompt': 'a', 'completion': f'{i}', 'label': True} for i in range(30)]
    with pytest.raises(SettingsError, match='answers to other prompts'):
        _made(folder.parent / 'w3', 'unpaired_preference', same)
    unclear = [{**row, 'label': 'maybe'} for row in SINGLES]
    with pytest.raises(ValueError, match="label 'maybe' is neither true nor false"):
        _made(folder.parent / 'w4', 'unpaired_preference', unclear)


def test_answers_cut_away_are_counted(folder):
    long = [{**pair, 'chosen': ' '.join(['fine'] * 40)} for pair in PAIRS[:20]]
    _, task = _made(folder.parent / 'long', rows=[*PAIRS, *long])
    assert task.notes == ('20 of 60 examples were cut at 32 tokens',)
