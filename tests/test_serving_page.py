"""The page about many adapters computes what it says."""

import re

import jax
import numpy as np

import peftjax
from peftjax import serving
from peftjax.cli.commands import COMMANDS
from tests.test_imports import ROOT

PAGE = (ROOT / 'docs/serving.md').read_text()


def test_the_page_runs_and_rows_are_those_of_each_adapter():
    names: dict = {}
    for block in re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL):
        exec(block, names)
    model, ids = names['model'], names['ids']
    tx, adapter, beside = names['members'][2]
    expected = peftjax.adapt(model, tx)(adapter, beside, input_ids=ids)
    np.testing.assert_allclose(names['logits'][0], expected[0], atol=1e-5)
    np.testing.assert_allclose(
        names['logits'][1], model.apply(model.params, input_ids=ids)[1], atol=1e-5
    )
    text = peftjax.adapt(model, tx)(adapter, beside, input_ids=ids[:1, :4])
    np.testing.assert_allclose(names['packed'][0, :4], text[0], atol=1e-5)
    tx, adapter, beside = names['members'][1]
    alone = peftjax.generator(model, tx)(adapter, beside, ids[:1, :1], max_new_tokens=5)
    mixed = names['generate'](
        names['bank'], np.array([2]), names['frozen'], ids[:1, :1], max_new_tokens=5
    )
    np.testing.assert_array_equal(mixed, alone)
    assert {number: len(each) for number, each in names['answers'].items()}.keys() == {0, 1, 2, 3}
    assert len(names['answers'][1]) <= 2 and names['requests'][0].places == 16 + 5
    assert names['last'] < names['first']
    assert jax.tree.structure(names['second']) == jax.tree.structure(names['tasks'][1][1])
    assert 1.0 < names['ratio'] < 1.2
    weights = 2 * (16 * 16 + 16 * 8) * 4e-6  # q and v of two layers
    assert names['held'] - names['light'] > 10 * weights > 10 * names['light']
    assert names['ensemble'].shape == names['parallel'].shape[1:]


def test_the_page_names_all_of_the_package():
    said = set(re.findall(r'serving\.(\w+)', PAGE)) | set(re.findall(r'`(\w+)', PAGE))
    assert set(serving.__all__) - said <= {'Answer', 'Bank', 'Trained'}
    assert 'peftjax generate' in PAGE and 'generate' in COMMANDS
