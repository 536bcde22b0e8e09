"""Rows, batches, splits: what enters the training step."""

import bz2
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.train import cadence
from peftjax.train.data import batches as data
from peftjax.train.data import corpora
from peftjax.train.data.packing import chat_row, pack, pad, trains

HEADER = 'category,text,movie_name,has_plot_and_reviews\n'


def _rows(sizes):
    return [
        {
            'input_ids': np.full(size, number + 1, np.int32),
            'segment_ids': np.ones(size, np.int32),
            'targets': np.int32(number % 2),
            'weights': np.float32(1.0),
        }
        for number, size in enumerate(sizes)
    ]


def _csv(path: Path, text: str) -> Path:
    with bz2.open(path, 'wt', encoding='utf-8') as file:
        file.write(text)
    return path


@settings(deadline=None, max_examples=30)
@given(count=st.integers(4, 200), batch_size=st.integers(1, 4), seed=st.integers(0, 9))
def test_an_epoch_takes_every_row_at_most_once_and_leaves_less_than_a_batch(
    count, batch_size, seed
):
    sizes = np.random.default_rng(seed).integers(1, 50, count)
    plan = data.plan_epoch(sizes, batch_size=batch_size, seed=seed, epoch=0)
    taken = np.concatenate(plan)
    assert len(set(taken.tolist())) == len(taken) == count // batch_size * batch_size
    assert all(len(batch) == batch_size for batch in plan)


def test_the_plan_depends_on_seed_and_epoch_only():
    def plan(seed, epoch):
        sizes = np.arange(64) % 13
        return np.stack(data.plan_epoch(sizes, batch_size=8, seed=seed, epoch=epoch))

    np.testing.assert_array_equal(plan(0, 0), plan(0, 0))
    assert not np.array_equal(plan(0, 0), plan(0, 1))
    assert not np.array_equal(plan(0, 0), plan(1, 0))


def test_rows_of_similar_length_share_a_batch():
    sizes = np.random.default_rng(0).integers(1, 80, 1024)
    plan = data.plan_epoch(sizes, batch_size=32, seed=0, epoch=0)
    spread = np.mean([np.ptp(sizes[batch]) for batch in plan])
    assert spread < 15  # without sorting it is near 77


def test_a_batch_has_the_least_length_that_holds_it():
    assert data.collate(_rows([3, 9]), (4, 8, 12))['input_ids'].shape == (2, 12)
    assert data.collate(_rows([3, 4]), (4, 8, 12))['input_ids'].shape == (2, 4)
    with pytest.raises(ValueError, match='13 tokens'):
        data.collate(_rows([13]), (4, 8, 12))


def test_too_few_rows_for_a_batch_raise():
    with pytest.raises(ValueError, match='3 rows do not fill one batch of 4'):
        data.plan_epoch(np.ones(3), batch_size=4, seed=0, epoch=0)


def test_evaluation_counts_every_row_once():
    rows = _rows([5, 2, 7, 3, 8])
    batches = list(data.eval_batches(rows, batch_size=2, lengths=(4, 8)))
    assert [batch['input_ids'].shape for batch in batches] == [(2, 4), (2, 8), (2, 8)]
    counted = [
        batch['input_ids'][i, 0]
        for batch in batches
        for i in range(2)
        if batch['weights'][i] == 1.0
    ]
    assert sorted(counted) == [1, 2, 3, 4, 5]


def test_the_position_in_the_data_can_be_saved_and_taken_up():
    def batches():
        return data.train_batches(
            _rows(range(1, 20)), batch_size=4, lengths=(20,), seed=0, steps=10
        )

    first = batches()
    before = [next(first).rows['input_ids'] for _ in range(3)]
    position = json.loads(json.dumps(first.get_state()))
    second = batches()
    second.set_state(position)
    np.testing.assert_array_equal(next(first).rows['input_ids'], next(second).rows['input_ids'])
    assert len(before) + 1 + len(list(second)) == 10


def test_processes_read_their_parts_of_one_batch():
    rows = _rows([5, 2, 7, 3, 8, 4, 6, 1])
    options = {'batch_size': 4, 'lengths': (4, 8)}
    for batches in (
        lambda mine: data.train_batches(rows, **options, seed=0, steps=4, local=mine),
        lambda mine: map(data.Part, data.eval_batches(rows[:6], **options, local=mine), 4 * [0]),
    ):
        whole, *parts = (list(batches(mine)) for mine in (None, np.array([0, 3]), np.array([1, 2])))
        for one, first, second in zip(whole, *parts, strict=True):
            assert one.tokens == first.tokens == second.tokens
            for name, value in one.rows.items():
                np.testing.assert_array_equal(first.rows[name], value[[0, 3]])
                np.testing.assert_array_equal(second.rows[name], value[[1, 2]])


def test_a_chat_row_predicts_the_answer_and_only_that():
    row = chat_row([10, 11, 12], [20, 21], max_length=8)
    np.testing.assert_array_equal(row['input_ids'], [10, 11, 12, 20])
    np.testing.assert_array_equal(row['targets'], [11, 12, 20, 21])
    np.testing.assert_array_equal(row['weights'], [0, 0, 1, 1])
    np.testing.assert_array_equal(row['position_ids'], [0, 1, 2, 3])
    assert {len(value) for value in chat_row([1] * 8, [2] * 9, max_length=8).values()} == {8}
    for prompt, answer in (([1] * 9, [2] * 9), ([1] * 3, []), ([], [2])):
        with pytest.raises(ValueError, match='leave no token of the answer to predict'):
            chat_row(prompt, answer, max_length=8)


@given(prompt=st.integers(0, 9), answer=st.integers(0, 9), longest=st.integers(1, 12))
def test_a_row_that_trains_has_a_weight(prompt, answer, longest):
    if trains([1] * prompt, [2] * answer, longest):
        assert chat_row([1] * prompt, [2] * answer, longest)['weights'].any()
    else:
        with pytest.raises(ValueError, match='leave no token'):
            chat_row([1] * prompt, [2] * answer, longest)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 16), min_size=1, max_size=40))
def test_packing_keeps_every_token_and_numbers_the_segments(sizes):
    rows = [chat_row([number] * (size - 1), [number] * 2, 16) for number, size in enumerate(sizes)]
    packed = pack(rows, 16)
    assert len(packed) <= len(rows)
    seen = []
    for row in packed:
        assert {len(value) for value in row.values()} == {16}
        for segment in range(1, row['segment_ids'].max() + 1):
            place = row['segment_ids'] == segment
            seen.append(np.unique(row['input_ids'][place]).tolist() + [place.sum()])
            np.testing.assert_array_equal(row['position_ids'][place], np.arange(place.sum()))
    assert sorted(seen) == [[number, size] for number, size in enumerate(sizes)]
    assert sum(row['weights'].sum() for row in packed) == 2 * len(sizes)


def test_a_row_longer_than_the_packed_length_raises():
    with pytest.raises(ValueError, match='row 0 has 9 tokens'):
        pack([chat_row([1] * 8, [2] * 2, 16)], 8)


def test_padding_leaves_scalars_alone():
    row = pad(_rows([2])[0], 4)
    assert row['input_ids'].tolist() == [1, 1, 0, 0]
    assert row['targets'].shape == ()


def test_reviews_drop_plots_and_repeats_and_join_two_names_of_one_film(tmp_path):
    path = _csv(
        tmp_path / 'reviews.csv.bz2',
        HEADER
        + 'fresh,good,a,True\nrotten,bad,b,True\nplot,a man walks,a,True\n'
        + 'fresh,good,a2,True\nrotten,poor,a2,True\n',
    )
    reviews = corpora.read_reviews(path)
    assert [(r.text, r.label, r.film) for r in reviews] == [
        ('good', 1, 'a'),
        ('bad', 0, 'b'),
        ('poor', 0, 'a'),
    ]


def test_a_missing_column_is_named_with_the_file_and_what_was_found(tmp_path):
    path = _csv(tmp_path / 'reviews.csv.bz2', 'category,sentence\nfresh,good\n')
    with pytest.raises(ValueError, match=r'reviews\.csv\.bz2 has no column text, movie_name; .*'):
        corpora.read_reviews(path)
    with pytest.raises(ValueError, match='found: category, sentence'):
        corpora.read_reviews(path)


def test_problems_name_a_missing_field_and_a_broken_line(tmp_path):
    path = tmp_path / 'problems.jsonl'
    path.write_text('{"question": "1+1?"}\n', encoding='utf-8')
    with pytest.raises(ValueError, match='no column answer; found: question'):
        corpora.read_problems(path)
    path.write_text('{"question": "1+1?", "answer": "2"}\n{"quest\n', encoding='utf-8')
    with pytest.raises(ValueError, match='line 2: not JSON'):
        corpora.read_problems(path)


def test_no_film_is_in_two_splits():
    reviews = [
        corpora.Review(f'{film} {number}', number % 2, f'film {film}')
        for film in range(300)
        for number in range(3)
    ]
    splits = corpora.split_by_film(reviews)
    films = {name: {review.film for review in split} for name, split in splits.items()}
    assert sum(map(len, films.values())) == len(set.union(*films.values())) == 300
    assert 0.1 < len(films['test']) / 300 < 0.3
    assert splits == corpora.split_by_film(reviews)


@pytest.mark.parametrize(
    ('duration', 'expected'),
    [('3 epochs', 30), ('1 epoch', 10), ('0.25 epochs', 3), ('500 steps', 500), ('64 examples', 8)],
)
def test_durations(duration, expected):
    assert cadence.steps(duration, steps_per_epoch=10, batch_size=8) == expected


@pytest.mark.parametrize('duration', ['3', 'epochs', '-1 steps', '3 weeks', ''])
def test_a_duration_without_number_or_unit_raises(duration):
    with pytest.raises(ValueError, match='write for example'):
        cadence.steps(duration, steps_per_epoch=10, batch_size=8)
