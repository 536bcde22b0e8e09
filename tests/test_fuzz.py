"""The readers on damaged and hostile files, as `benchmarks.fuzz` has them, a few of each."""

import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz, fuzz_readers


@pytest.fixture(scope='module')
def readers(tmp_path_factory):
    made = fuzz_readers.readers(tmp_path_factory.mktemp('files'))
    for reader in made:
        reader.read(reader.files)
    return {reader.name: reader for reader in made}


NAMES = (
    *('base', 'sharded', 'gguf', 'bert', 'peft', 'adapterhub', 'saved'),
    *('jsonl', 'csv', 'tsv', 'parquet', 'run'),
)


@settings(deadline=None, max_examples=120)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**32))
def test_a_reader_takes_damaged_files_or_names_them(name, seed, readers, tmp_path_factory):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    outcome = fuzz.case(readers[name], tmp_path_factory.mktemp('fuzz'), seed)
    assert outcome.name in ('read', 'refused'), (name, seed, outcome)


@pytest.mark.parametrize('seed', range(4))
def test_a_damaged_checkpoint_is_whole_or_refused(seed, readers, tmp_path):
    outcome = fuzz.case(readers['checkpoints'], tmp_path / 'copy', seed)
    assert outcome.name in ('read', 'refused'), outcome


def test_the_fuzzer_sees_faults(readers, tmp_path):
    def careless(folder):
        raise RuntimeError('no')

    def silent(folder):
        raise ValueError('a message without a name')

    base = readers['base']
    assert fuzz.case(base._replace(read=careless), tmp_path / 'a', 0).name == 'crash'
    assert fuzz.case(base._replace(read=silent), tmp_path / 'b', 0).name == 'unnamed'
    nan = base._replace(read=lambda folder: [fuzz.np.float32('nan')])
    assert fuzz.case(nan, tmp_path / 'c', 0).name == 'not finite'
