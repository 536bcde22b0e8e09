"""`save` and `restore`: any method of any model, and files that nobody vouches for."""

import functools
import json
import os
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax.core import paths
from peftjax.interop.folder import arrays as files
from peftjax.interop.folder.constructors import METHODS as MAKERS
from peftjax.interop.folder.text import read_text
from peftjax.testing import tiny_mlp
from tests.contract_models import IDS, MODELS
from tests.rows import METHODS

FORM = 'linen scanned'
X = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
MLP = functools.cache(tiny_mlp)


def _drawn(transform, model):
    """An adapter of random numbers, without computing the start, and what is frozen beside it."""
    shapes = jax.eval_shape(transform.start, jax.random.key(0), model)
    random = np.random.default_rng(0)
    adapter = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype), shapes
    )
    return adapter, transform.freeze(model, adapter)


def _assert_same(restored, adapter, frozen):
    """Equal in structure, dtypes and every bit."""
    one, other = (adapter, frozen), (restored.adapter, restored.frozen)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    leaves = paths.flatten(other)
    for path, leaf in paths.flatten(one).items():
        assert files.same(leaf, leaves[path]), path


def _round_trip(folder, model, transform, adapter, frozen, **options):
    peftjax.save(folder, model, transform, adapter, frozen, **options)
    restored = peftjax.restore(folder, model)
    _assert_same(restored, adapter, frozen)
    return restored


def _program(model, transform, adapter, frozen):
    predict = peftjax.adapt(model, transform)
    run = jax.jit(lambda a, f, k: predict(a, f, ids=IDS, adapter_key=k))
    return run.lower(adapter, frozen, jax.random.key(0)).as_text()


# LoftQ's start takes seconds on a scanned model; a smaller one has a test of its own.
_QUICK = [m if m != 'loftq' else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]


@pytest.mark.parametrize('method', _QUICK)
def test_every_method_comes_back(method, tmp_path):
    """The same bits and the same program: so it predicts the same bits, with dropout too."""
    row, model = METHODS[method], MODELS[FORM]()
    transform = row.maker(model)(row.targets)
    adapter, frozen = _drawn(transform, model)
    peftjax.save(tmp_path, model, transform, adapter, frozen)
    given = {} if transform.about else {'transform': transform}
    restored = peftjax.restore(tmp_path, model, **given)
    _assert_same(restored, adapter, frozen)
    if not row.variant:  # Those predict in the slow test.
        assert _program(model, *restored) == _program(model, transform, adapter, frozen)


@pytest.mark.slow
@pytest.mark.parametrize('form', [form for form in MODELS if form != FORM])
@pytest.mark.parametrize('method', METHODS)
def test_every_method_comes_back_on_every_form(method, form, tmp_path):
    row, model = METHODS[method], MODELS[form]()
    transform = row.maker(model)(row.targets)
    adapter, frozen = _drawn(transform, model)
    peftjax.save(tmp_path, model, transform, adapter, frozen)
    given = {} if transform.about else {'transform': transform}
    restored = peftjax.restore(tmp_path, model, **given)
    _assert_same(restored, adapter, frozen)
    outputs = (
        peftjax.adapt(model, each)(a, f, ids=IDS)
        for each, a, f in ((transform, adapter, frozen), restored)
    )
    assert files.same(*outputs)


def test_what_may_be_described_is_what_is_public():
    makers = {
        name
        for name in peftjax.__all__
        if hasattr(make := getattr(peftjax, name), '__annotations__')
        and make.__annotations__.get('return') is peftjax.PeftTransform
    }
    assert set(MAKERS) == makers - {'weightwise'}


def test_chains_and_own_arguments(tmp_path):
    mlp = MLP()
    a = 0.1 * jnp.arange(8.0).reshape(4, 2)
    transform = peftjax.named_chain({
        'bias': peftjax.select((r'.*/bias',), dtype=None),
        'low': peftjax.chain(
            peftjax.lora(
                rank=2,
                alpha=np.float32(3),  # pyright: ignore[reportArgumentType]
                targets=r'hidden',
                init={'hidden/kernel': a},
                dtype='bfloat16',
            ),
            peftjax.lora(rank=1, targets=r'out', alpha_pattern={r'out': 5}),
        ),
    })  # fmt: skip
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    restored = _round_trip(tmp_path, mlp, transform, adapter, frozen)
    assert files.same(
        peftjax.adapt(mlp, transform)(adapter, frozen, X),
        peftjax.adapt(mlp, restored.transform)(restored.adapter, restored.frozen, X),
    )
    assert repr(restored.transform.init(jax.random.key(0), mlp)[0]) == repr(adapter)
    bottleneck = peftjax.bottleneck(size=2, targets=r'hidden', activation=jax.nn.gelu)
    _round_trip(tmp_path, mlp, bottleneck, *bottleneck.init(jax.random.key(0), mlp))


def _own(dtype):
    """A transform of own functions, with complex numbers of its own."""
    return peftjax.weightwise(
        lambda key, matrix, site: {'phase': jnp.ones(matrix.shape[1], dtype)},
        lambda leaves, matrix: matrix * jnp.real(leaves['phase'] * leaves['turn'])[None],
        targets=r'.*/kernel',
        own=lambda site: {'turn': jnp.asarray([1.0 + 2.0j], jnp.complex64)},
        name='own',
    )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'complex64', 'float8_e4m3fn', 'int4'])
def test_an_own_transform_is_given_back(dtype, tmp_path):
    mlp, transform = MLP(), _own(dtype)
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    peftjax.save(tmp_path, mlp, transform, adapter, frozen)
    with pytest.raises(peftjax.CheckpointError, match=r'restore\(folder, model, transform=tx\)'):
        peftjax.restore(tmp_path, mlp)
    _assert_same(peftjax.restore(tmp_path, mlp, transform=transform), adapter, frozen)
    # Changed by hand: by value, beside a transform that is described too.
    turned = {'out/kernel': {'turn': jnp.asarray([2.0j], jnp.complex64)}}
    own = frozen.own.replace(**turned)
    pair = peftjax.chain(peftjax.lora(rank=1, targets=r'out'), transform)
    whole, both = pair.init(jax.random.key(0), mlp)
    both = both._replace(own=(both.own[0], own))
    peftjax.save(tmp_path, mlp, pair, whole, both)
    _assert_same(peftjax.restore(tmp_path, mlp, transform=pair), whole, both)
    assert (tmp_path / 'frozen.safetensors').is_file()


def test_a_changed_scale_is_kept_by_value(tmp_path):
    mlp, transform = MLP(), peftjax.lora(rank=2, alpha=4, targets=r'.*/kernel')
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    _round_trip(tmp_path, mlp, transform, adapter, frozen)
    assert not (tmp_path / 'frozen.safetensors').exists()
    scaled = {**frozen.own['out/kernel'], 'scale': jnp.float32(7.0)}
    own = frozen.own.replace(**{'out/kernel': scaled})
    _round_trip(tmp_path, mlp, transform, adapter, frozen._replace(own=own))
    assert json.loads((tmp_path / 'peftjax.json').read_text())['own'] == ['out/kernel/scale']
    _round_trip(tmp_path, mlp, transform, adapter, frozen)
    assert not (tmp_path / 'frozen.safetensors').exists(), 'what an older save left'
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'adapter.safetensors',
        'peftjax.json',
    ]


def test_select_in_a_bfloat16_model(tmp_path):
    mlp = MLP()
    mlp = mlp.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mlp.params))
    for dtype in (jnp.float32, None):
        transform = peftjax.select(r'.*/bias', dtype=dtype)
        adapter, frozen = transform.init(jax.random.key(0), mlp)
        restored = _round_trip(tmp_path, mlp, transform, adapter, frozen)
        assert restored.adapter['out/bias'].dtype == (dtype or jnp.bfloat16)
        assert isinstance(restored.frozen.params['out']['bias'], peftjax.Hole)


def test_frozen_leaves_that_differ_are_kept_by_value(tmp_path):
    mlp, transform = MLP(), peftjax.lora(rank=2, targets=r'out')
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    changed = {
        **frozen.params,
        'hidden': peftjax.quantize(mlp, 'int8', targets='hidden').params['hidden'],
    }
    changed['out'] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), changed['out'])
    restored = _round_trip(tmp_path, mlp, transform, adapter, frozen._replace(params=changed))
    assert isinstance(restored.frozen.params['hidden']['kernel'], peftjax.QuantizedArray)


@pytest.mark.parametrize('init', ['pissa', 'olora'])
def test_what_is_left_of_the_weights(init, tmp_path, monkeypatch):
    mlp = MLP()
    transform = peftjax.chain(
        peftjax.select(r'.*/bias'), peftjax.lora(rank=2, init=init, targets=r'.*/kernel')
    )
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    trained = peftjax.testing.perturb(adapter, 0)
    _round_trip(tmp_path / 'small', mlp, transform, trained, frozen)
    _round_trip(tmp_path / 'whole', mlp, transform, trained, frozen, whole=True)
    # Compiled as a whole, or changed: by value.
    compiled = jax.jit(transform.init)(jax.random.key(0), mlp)[1]
    _round_trip(tmp_path / 'other', mlp, transform, trained, compiled)
    written = {
        name: json.loads((tmp_path / name / 'peftjax.json').read_text())['params']
        for name in ('small', 'whole')
    }
    assert not written['small']['values'] and len(written['small']['samples']) == 2
    assert len(written['whole']['values']) == 4 and not written['whole']['samples']
    # On a machine whose decompositions come out otherwise.
    for name in ('svd', 'qr'):
        real = getattr(jnp.linalg, name)
        other = functools.partial(lambda real, x, **options: real(x + 1.0, **options), real)
        monkeypatch.setattr(jnp.linalg, name, other)
    again = transform.freeze(mlp, trained).params
    assert not files.same(again['out']['kernel'], frozen.params['out']['kernel'])
    _assert_same(peftjax.restore(tmp_path / 'small', mlp), trained, frozen)
    monkeypatch.undo()
    path = tmp_path / 'small' / 'peftjax.json'
    fields = json.loads(path.read_text())
    fields['params']['samples']['out/kernel'][3] += 0.01
    path.write_text(json.dumps(fields))
    with pytest.raises(peftjax.CheckpointError, match=r"'out/kernel'.*whole=True"):
        peftjax.restore(tmp_path / 'small', mlp)


def test_codes_of_loftq_are_kept(tmp_path, monkeypatch):
    mlp = MLP()
    transform = peftjax.loftq(
        rank=1, scheme=peftjax.NF4(block=4, double=False), iterations=1, targets=r'out'
    )
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    peftjax.save(tmp_path, mlp, transform, adapter, frozen)
    monkeypatch.setattr(peftjax.PeftTransform, 'remaining', None)  # Nothing is quantised again.
    _assert_same(peftjax.restore(tmp_path, mlp), adapter, frozen)


def test_another_model_is_refused(tmp_path):
    mlp, transform = MLP(), peftjax.lora(rank=2, targets=r'hidden')
    peftjax.save(tmp_path, mlp, transform, *transform.init(jax.random.key(0), mlp))

    def with_kernel(leaf):
        return mlp.replace(params={**mlp.params, 'out': {**mlp.params['out'], 'kernel': leaf}})

    kernel = mlp.params['out']['kernel']
    for leaf, told in [
        (kernel.at[3, 1].add(1e-3), r"'out/kernel' was \[8, 3\] float32.* with other numbers"),
        (kernel.astype(jnp.bfloat16), r"'out/kernel' .*float32, .* \[8, 3\] bfloat16"),
        (kernel[:, :2], r"'out/kernel' was \[8, 3\] float32, this model has \[8, 2\] float32"),
        (jax.ShapeDtypeStruct((8, 3), jnp.float32), 'real arrays'),
    ]:
        with pytest.raises((peftjax.CheckpointError, TypeError), match=told):
            peftjax.restore(tmp_path, with_kernel(leaf))
    with pytest.raises(peftjax.CheckpointError, match=r"'hidden/kernel' .* by Int8\(\)"):
        peftjax.restore(tmp_path, peftjax.quantize(mlp, 'int8', targets='hidden'))
    wide = nn.Dense(3)
    other = peftjax.wrap(wide, wide.init(jax.random.key(0), X), X)
    with pytest.raises(peftjax.CheckpointError, match="'hidden/bias' this model has none"):
        peftjax.restore(tmp_path, other)


def test_a_large_leaf_is_told_by_a_sample():
    leaf = np.random.default_rng(0).normal(size=(300, 700)).astype(np.float32)
    assert files.checksum(leaf) == files.checksum(jnp.asarray(leaf))
    places = files.sample(np.arange(leaf.size).reshape(leaf.shape))
    rows, columns = np.unique(places // 700), np.unique(places % 700)
    assert (len(rows), len(columns)) == (300, 700)
    assert files.checksum(leaf) != files.checksum(leaf + 1e-6)


def test_what_cannot_be_saved_says_so(tmp_path):
    mlp = MLP()
    lora, other = (peftjax.lora(rank=rank, targets=r'hidden') for rank in (2, 3))
    adapter, frozen = lora.init(jax.random.key(0), mlp)
    with pytest.raises(peftjax.AdapterError, match=r"'hidden/kernel/a' of shape \(4, 2\)"):
        peftjax.save(tmp_path, mlp, other, adapter, frozen)
    with pytest.raises(TypeError, match='model is a PeftTransform'):
        peftjax.save(tmp_path, lora, mlp, adapter, frozen)  # pyright: ignore
    with pytest.raises(TypeError, match='arguments are swapped'):
        peftjax.save(tmp_path, mlp, lora, frozen, adapter)
    cut = {**frozen.params, 'out': {'kernel': jnp.ones((8, 2)), 'bias': jnp.ones(2)}}
    with pytest.raises(peftjax.AdapterError, match="'out/bias'"):
        peftjax.save(tmp_path, mlp, lora, adapter, frozen._replace(params=cut))

    def twice(x):
        return 2 * x

    own = peftjax.bottleneck(size=2, targets=r'hidden', activation=twice)
    parts = own.init(jax.random.key(0), mlp)
    with pytest.raises(ValueError, match=r'bottleneck.activation is the function .*twice'):
        peftjax.save(tmp_path, mlp, own, *parts)
    assert not any(tmp_path.iterdir())
    own = own.replace(about=None)
    peftjax.save(tmp_path, mlp, own, *parts)
    _assert_same(peftjax.restore(tmp_path, mlp, transform=own), *parts)


def test_a_save_that_breaks_off_leaves_nothing_mixed(tmp_path, monkeypatch):
    mlp, transform = MLP(), peftjax.lora(rank=2, targets=r'hidden')
    adapter, frozen = transform.init(jax.random.key(0), mlp)
    peftjax.save(tmp_path, mlp, transform, adapter, frozen)
    names = sorted(path.name for path in tmp_path.iterdir())
    trained = peftjax.testing.perturb(adapter, 0)
    with monkeypatch.context() as patch:
        patch.setattr('peftjax.interop.folder.write.text_of', lambda fields: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            peftjax.save(tmp_path, mlp, transform, trained, frozen)
    _assert_same(peftjax.restore(tmp_path, mlp), adapter, frozen)
    replace = os.replace

    def tensors_only(source, target):
        if target.suffix == '.json':
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', tensors_only)
        with pytest.raises(KeyboardInterrupt):
            peftjax.save(tmp_path, mlp, transform, trained, frozen)
    with pytest.raises(peftjax.CheckpointError, match='SHA-256'):
        peftjax.restore(tmp_path, mlp)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_given_transform_is_compared_with_the_description(tmp_path):
    mlp = MLP()
    positions = {'hidden/kernel': np.asarray([0, 9])}

    def made(alpha, second):
        return peftjax.chain(
            peftjax.lora(rank=2, alpha=alpha, targets=r'out'),
            peftjax.fish_mask({**positions, 'hidden/kernel': np.asarray([0, second])}),
        )

    transform = made(4, 9)
    peftjax.save(tmp_path, mlp, transform, *transform.init(jax.random.key(0), mlp))
    peftjax.restore(tmp_path, mlp, transform=made(4, 9))
    for other, told in [
        (made(5, 9), 'lora.alpha is 4 in the folder and 5 in the transform'),
        (made(4, 8), 'other numbers'),
        (transform.replace(about=None), 'of functions'),
        (peftjax.lora(rank=2, targets=r'out'), 'method'),
    ]:
        with pytest.raises(peftjax.CheckpointError, match=told):
            peftjax.restore(tmp_path, mlp, transform=other)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with every file."""
    folder = tmp_path_factory.mktemp('saved')
    transform = peftjax.chain(
        peftjax.lora(rank=2, init='pissa', targets=r'hidden'),
        peftjax.fish_mask({'out/kernel': np.asarray([0, 9])}),
    )
    adapter, frozen = transform.init(jax.random.key(0), MLP())
    peftjax.save(folder, MLP(), transform, adapter, frozen)
    return folder


def _set(fields, path, value):
    *parents, last = path.split()
    for each in parents:
        fields = fields[int(each) if isinstance(fields, list) else each]
    fields[last] = value


_LORA = 'transform arguments transforms tuple 0'
_INIT = f'{_LORA} arguments init'
_DEEP = functools.reduce(lambda inner, _: [inner], range(80), 1)
# Where, what stands there, and what the error says.
HOSTILE = {
    'a name outside of the public ones': (
        f'{_LORA} method',
        'os.system',
        "'os.system' is no method",
    ),
    'a public function that makes no transform': (
        f'{_LORA} method',
        'load_adapter',
        "'load_adapter' is no method",
    ),
    'a method of functions': (f'{_LORA} method', 'weightwise', "'weightwise' is no method"),
    'a name that is none': (f'{_LORA} method', ['lora'], 'is no method'),
    'a function of another module': (_INIT, {'function': 'print'}, "'print' is no function"),
    'a function that is no activation': (
        _INIT,
        {'function': 'one_hot'},
        "'one_hot' is no function",
    ),
    'a value of another kind': (_INIT, {'value': 'Path', 'fields': {}}, "'Path' is no value"),
    'a kind that is none': (_INIT, {'pickle': 'gASV'}, 'keys of no kind'),
    'an unknown argument': (f'{_LORA} arguments evil', 1, "unexpected keyword argument 'evil'"),
    'a rank of another type': (f'{_LORA} arguments rank', 'two', 'rank must be a whole number'),
    'a huge rank': (f'{_LORA} arguments rank', 10**12, "larger than 'hidden/kernel' allows"),
    'a greater one than any': (f'{_LORA} arguments rank', 10**30, 'too large a number'),
    'a negative rank': (f'{_LORA} arguments rank', -1, 'rank must be'),
    'another rank': (f'{_LORA} arguments rank', 3, r'shape \(4, 2\), the transform makes \(4, 3\)'),
    'no dtype': (f'{_LORA} arguments dtype', {'dtype': 'object'}, "'object' is no dtype"),
    'a pattern that takes for ever': (f'{_LORA} arguments targets', '(h*)*x', 'can take for ever'),
    'a pattern that is none': (f'{_LORA} arguments targets', '(hidden', 'not a regular expression'),
    'a tensor that is not there': (
        _INIT,
        {'array': 'transform/9'},
        "lacks the tensor 'transform/9'",
    ),
    'a tensor that is taken twice': (
        _INIT,
        [{'array': 'start/0/hidden/kernel/a'}, {'array': 'start/0/hidden/kernel/a'}],
        'two places ask for it',
    ),
    'a deep list': (_INIT, _DEEP, 'nested too deeply'),
    'a list for a chain': ('transform arguments transforms', [1, 2], 'chain takes a tuple'),
    'no transform': ('transform', {'tuple': []}, 'a tuple stands where'),
    'a string for a transform': ('transform', 'lora', "'transform' is missing, or of another type"),
    'another format': ('format', 2, 'is of format 2'),
    'a list for the model': ('model', [], "'model' is missing"),
    'a number for a leaf': ('model out/kernel', 1, 'identifies no model'),
    'numbers that are not the own': (
        'own',
        ['hidden/kernel/none'],
        "no number 'hidden/kernel/none'",
    ),
    'a list in the own': ('own', [['a']], 'no number'),
    'no source': ('params from', 'nowhere', 'not how this transform'),
    'the source of another method': ('params from', 'adapter', 'not how this transform'),
    'no values': ('params values', 3, 'lacks values'),
    'a value for no leaf': ('params values x', {'value': 'Hole', 'fields': {}}, "'x' is no leaf"),
    'a value of another shape': (
        'params values out/kernel',
        {'value': 'Hole', 'fields': {'shape': {'tuple': [3, 3]}, 'dtype': None}},
        r'shape \(3, 3\)',
    ),
    'a quantised leaf of nothing': (
        'params values out/kernel',
        {'quantized': {'arrays': {'dict': []}, 'scheme': None, 'matrix': None, 'dtype': None}},
        'QuantizedArray cannot be made',
    ),
    'samples that are none': ('params samples hidden/kernel', ['a'], 'no numbers to compare'),
    'too few samples': ('params samples hidden/kernel', [0.0], 'whole=True'),
    'no files': ('files', {}, 'not described'),
    'a file of another sum': ('files adapter.safetensors sha256', '0' * 64, 'SHA-256'),
    'dtypes that are none': (
        'files adapter.safetensors dtypes',
        {'0/hidden/kernel/a': 'complex64'},
        r'shape \(4,\)',
    ),
    'a dtype that is a list': (
        'files adapter.safetensors dtypes',
        {'0/hidden/kernel/a': ['complex64']},
        'does not hold',
    ),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_description_is_refused(name, saved, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(saved, folder)
    fields = json.loads((folder / 'peftjax.json').read_text())
    path, value, told = HOSTILE[name]
    _set(fields, path, value)
    (folder / 'peftjax.json').write_text(json.dumps(fields))
    with pytest.raises(peftjax.CheckpointError, match=told):
        peftjax.restore(folder, MLP())


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{"format": NaN}',
        '{"format": 1e999}',
        f'{{"format": {"9" * 5000}}}',
        '{"format": 1, "format": 1}',
        '{"a": ' * 100_000,
        '[' * 70 + ']' * 70,
        '{"a":' * 70 + '1' + '}' * 70,
        b'\xff',
    ],
    ids=range(10),
)
def test_what_is_no_description_is_refused(text, tmp_path):
    path = tmp_path / 'peftjax.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(peftjax.CheckpointError):
        read_text(path)


@pytest.mark.parametrize(
    'field', ['format', 'peftjax', 'transform', 'model', 'own', 'params', 'files']
)
def test_a_missing_field_is_named(field, saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    fields = json.loads((saved / 'peftjax.json').read_text())
    del fields[field]
    (tmp_path / 'peftjax.json').write_text(json.dumps(fields))
    with pytest.raises(peftjax.CheckpointError, match=field):
        peftjax.restore(tmp_path, MLP())


def test_tensors_that_are_missing_unknown_or_of_another_shape(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    fields = json.loads((saved / 'peftjax.json').read_text())
    arrays = {
        '0/hidden/kernel/a': np.ones((4, 2), np.float32),
        '0/hidden/kernel/b': np.ones((2, 8), np.float32),
        '1/out/kernel': np.ones(2, np.float32),
    }
    a, b, delta = arrays
    for changed, told in [
        ({a: arrays[a], delta: arrays[delta]}, f'lacks the tensor {b!r}'),
        ({**arrays, 'x': np.ones(1)}, 'nothing here takes: x'),
        ({**arrays, a: np.ones((4, 3), np.float32)}, r"'0/hidden/kernel/a' is of shape \(4, 3\)"),
    ]:
        fields['files']['adapter.safetensors'] = files.write(
            tmp_path / 'adapter.safetensors', changed
        )
        (tmp_path / 'peftjax.json').write_text(json.dumps(fields))
        with pytest.raises(peftjax.CheckpointError, match=told):
            peftjax.restore(tmp_path, MLP())
    (tmp_path / 'adapter.safetensors').write_bytes(b'no tensors')
    with pytest.raises(peftjax.CheckpointError, match='corrupt'):
        peftjax.restore(tmp_path, MLP())
    (tmp_path / 'adapter.safetensors').unlink()
    with pytest.raises(peftjax.CheckpointError, match='does not exist'):
        peftjax.restore(tmp_path, MLP())
    with pytest.raises(peftjax.CheckpointError, match='is it a folder of'):
        peftjax.restore(tmp_path / 'nowhere', MLP())


def test_targets_with_exceptions_come_back(tmp_path):
    chosen = peftjax.targets(['hidden', 'out'], exclude=['out'], expect=1)
    tx = peftjax.lora(rank=2, targets=chosen)
    model = peftjax.testing.tiny_mlp()
    peftjax.save(tmp_path, model, tx, *tx.init(jax.random.key(0), model))
    restored = peftjax.restore(tmp_path, model)
    about = restored.transform.about
    assert about is not None and about.arguments['targets'] == chosen
    assert sorted(restored.adapter) == ['hidden/kernel']
