"""Adapters of other libraries: our logits, loss, merged logits and gradients are theirs."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from tests.checkpoint_files import GOLDEN
from tests.oracle.__main__ import main
from tests.oracle.cases import find
from tests.oracle.gradients import comparable
from tests.oracle.judge import TOLERANCE, applied, judge, written

CASES, OTHERS, UNREADABLE = find(GOLDEN)
# What a file does not say, by the words of the refusal; what stands beside it is judged.
REFUSED = {
    'llama/psoft': 'signs of singular vectors',
}
# One array holds all layers of a scan, and these adapt some of them.
REFUSED_ON_A_SCAN = {
    'adapters/gpt2/leave_out': 'scan=False',
    'adapters/t5_pair/leave_out_bn': 'scan=False',
}
# Gemma 2's soft caps lose more where machine code is unoptimised: 4.5e-5 on one processor.
TINY_TOLERANCE = 1e-4


def _method(case):
    inner = case.config.get('config', case.config)
    return case.config.get('peft_type', inner.get('architecture')), inner.get('use_dora')


# One case of each method on scanned layers as well, the others by -m slow: that these read the same
# arrays is in the tests of files that go out as they came in. By default a quarter of the
# cases that are not slow run, by the mark `sampled`.
FIRST = {_method(case): case for case in reversed(CASES)}
FORMS = [pytest.param(case, False, id=f'{case.name}-looped') for case in CASES] + [
    pytest.param(
        case,
        True,
        marks=() if FIRST[_method(case)] is case else pytest.mark.slow,
        id=f'{case.name}-scanned',
    )
    for case in CASES
]


@pytest.mark.sampled
@pytest.mark.parametrize(('case', 'scan'), FORMS)
def test_reference_adapter(case, scan):
    tolerance = TINY_TOLERANCE if case.name.startswith('tiny_') else TOLERANCE
    verdict = judge(case, scan=scan, tolerance=tolerance)
    assert not verdict.wrong, verdict.errors
    refused = {**REFUSED, **REFUSED_ON_A_SCAN} if scan else REFUSED
    assert (refused.get(case.name, '') in verdict.refused) if verdict.refused else verdict.errors
    assert bool(verdict.refused) == (case.name in refused)
    if not scan:
        judged = {name.partition(',')[0] for name in verdict.errors}
        held = comparable(case) and not case.headless
        assert not held or 'gradients' in judged
        assert 'merged' in judged or 'merged_logits' not in case.outputs


def test_every_adapter_is_a_case():
    assert not OTHERS and not UNREADABLE


def _changed(tmp_path, method, change):
    for name in ('base', method):
        shutil.copytree(GOLDEN / 'llama' / name, tmp_path / 'llama' / name)
    change(tmp_path / 'llama' / method)
    return tmp_path


def _wrong_output(name):
    def change(folder):
        with np.load(folder / 'logits.npz') as file:
            arrays = dict(file)
        arrays[name] = arrays[name] + 1e-2
        np.savez(folder / 'logits.npz', **arrays)

    return change


@pytest.mark.parametrize('name', ['logits', 'loss', 'merged_logits'])
def test_a_wrong_number_is_seen(name, tmp_path):
    (case,), *_ = find(_changed(tmp_path, 'lora', _wrong_output(name)))
    assert judge(case).wrong


@pytest.mark.parametrize(('place', 'factor'), [(0, 1.01), (-1, np.nan)])
@pytest.mark.parametrize('name', ['llama/lora', 'adapters/llama/loreft_pos'])
def test_a_wrong_gradient_is_seen(name, place, factor):
    case = next(case for case in CASES if case.name == name)
    tensor = sorted(case.gradients)[place]
    gradients = {**case.gradients, tensor: case.gradients[tensor] * np.float32(factor)}
    verdict = judge(dataclasses.replace(case, gradients=gradients))
    assert not verdict.errors['gradients'] <= 10 * TOLERANCE
    assert verdict.wrong


@pytest.mark.sampled
@pytest.mark.parametrize('case', [c for c in CASES if not c.headless], ids=lambda case: case.name)
def test_the_adapter_of_a_case_changes_what_the_model_gives(case):
    model = case.model(False)
    theirs = case.outputs.get('logits', case.outputs.get('last_hidden_state'))
    inputs = {name: value for name, value in case.inputs.items() if name != 'task_ids'}
    plain = np.asarray(applied(model)(model.params, inputs))
    if plain.shape == theirs.shape:  # Virtual tokens make it longer.
        plain, theirs = written(case, plain, theirs)
        assert np.abs(plain - theirs).max() > 1e-3 * np.abs(theirs).max()


def test_a_torn_case_leaves_the_others_judged(tmp_path, capfd):
    root = _changed(tmp_path, 'lora', lambda folder: None)
    torn = root / 'llama' / 'torn'
    shutil.copytree(root / 'llama' / 'lora', torn)
    (torn / 'adapter_model.safetensors').write_bytes(b'')
    assert main([str(root)]) == 1
    first, second, last = capfd.readouterr().out.splitlines()
    assert re.match('llama/lora +equal', first) and re.match('llama/torn +wrong', second)
    assert last.startswith('2 cases: 1 equal, 1 wrong')


def _unknown_method(folder):
    config = json.loads((folder / 'adapter_config.json').read_text())
    (folder / 'adapter_config.json').write_text(json.dumps({**config, 'peft_type': 'LILY'}))


@pytest.mark.parametrize(
    ('change', 'code', 'words'),
    [
        (_wrong_output('logits'), 1, 'llama/lora +wrong'),
        (_unknown_method, 0, "refused  .*'LILY' is not built here"),
        (lambda folder: (folder / 'logits.npz').unlink(), 2, 'holds no <base>/<case>'),
        (lambda folder: (folder / 'logits.npz').write_bytes(b'PK'), 2, 'llama/lora: '),
        (lambda folder: (folder / 'adapter_config.json').write_text('{'), 2, 'JSONDecodeError'),
        (lambda folder: shutil.rmtree(folder.parents[1]), 2, 'is no folder'),
    ],
    ids=['wrong', 'refused', 'no numbers', 'torn numbers', 'torn config', 'no folder'],
)
def test_the_command_says_what_it_found(change, code, words, tmp_path, capfd):
    root = _changed(tmp_path / 'cases', 'lora', change)
    assert main([str(root)]) == code
    out, err = capfd.readouterr()
    assert (code == 2) == bool(err)
    lines = (err or out).splitlines()
    assert len(lines) == (1 if code == 2 else 2)
    assert re.search(words, lines[0])
