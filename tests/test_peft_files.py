"""Adapters of Hugging Face's peft go out as they came in; test_oracle has their logits."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.names import matches_end
from peftjax.methods import torch_draws
from tests.oracle.cases import GOLDEN, load_base

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
BASES = ('llama', 'bert', 'gpt2')
FOLDERS = sorted(
    path.parent for path in GOLDEN.glob(f'*/*/{CONFIG}') if path.parents[1].name in BASES
)
# The signs of singular vectors are not in the file.
READABLE = [folder for folder in FOLDERS if folder.name != 'psoft']
# What we write beside or in place of a tensor of theirs; all else is the same byte for byte.
WRITTEN_OTHERWISE = {
    'llama/delora': r'the lengths of rows, in other last digits',
    'llama/lora_embedding': r'the frozen table beside its factors is left out',
    'bert/lora_bias_all': r'an unused copy of the head is left out',
    'bert/vera_noproj': r'projections are written',
}


def _base(architecture, scan):
    task = 'classification' if architecture == 'bert' else None
    return load_base(GOLDEN / architecture / 'base', task, scan)


def _name(folder):
    return folder.relative_to(GOLDEN).as_posix()


def _forms(tree):
    shapes = [(leaf.shape, jnp.dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tuple(tree)), shapes


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize('folder', READABLE, ids=map(_name, READABLE))
def test_a_file_of_peft_goes_out_as_it_came(folder, scan, tmp_path):
    model = _base(folder.parent.name, scan)
    loaded = peftjax.load_adapter(folder, model)
    # What is read is what `init` makes, but for its numbers.
    fresh = jax.eval_shape(loaded.transform.init, jax.random.key(0), model)
    assert _forms(fresh) == _forms((loaded.adapter, loaded.frozen))
    if folder.name == 'randlora':
        return
    peftjax.save_adapter(tmp_path, model, loaded.transform, loaded.adapter)
    again = peftjax.load_adapter(tmp_path, model)
    assert jax.tree.structure(again.adapter) == jax.tree.structure(loaded.adapter)
    for ours, theirs in zip(
        jax.tree.leaves(again.adapter), jax.tree.leaves(loaded.adapter), strict=True
    ):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    if _name(folder) in WRITTEN_OTHERWISE:
        return
    ours, theirs = load_file(tmp_path / WEIGHTS), load_file(folder / WEIGHTS)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].shape == value.shape and ours[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize(
    'transform',
    [
        peftjax.lora(
            rank=3,
            alpha=6,
            rank_pattern={r'.*down_proj/kernel': 2},
            alpha_pattern={r'.*v_proj/kernel': 5},
            targets=r'.*/([qv]_proj|down_proj)',
        ),
        peftjax.lora(
            rank=3,
            rank_pattern={r'.*q_proj/kernel': 2},
            alpha_pattern={r'.*k_proj/kernel': 5},
            targets=r'.*/[qkv]_proj',
        ),
        peftjax.dora(rank=2, rslora=True, targets=r'.*/[qv]_proj'),
        peftjax.chain(
            peftjax.select(r'lm_head/.*'),
            peftjax.trainable_tokens([3, 1], targets='embed_tokens/embedding'),
            peftjax.lora(rank=2, targets=r'.*/o_proj'),
        ),
        peftjax.named_chain({'norms': peftjax.select(r'.*norm/scale')}),
        peftjax.ia3(targets=r'.*/[kv]_proj', feedforward=r'.*/down_proj'),
        peftjax.fourierft(n_frequency=9, seed=5, draws='torch', targets=r'.*/[qv]_proj'),
        peftjax.shira(rank=1, targets=r'.*/[qv]_proj'),
        peftjax.vera(rank=4, targets=r'.*/[qv]_proj'),
        peftjax.delora(rank=2, targets=r'.*/[qv]_proj'),
        peftjax.vblora(rank=2, num_vectors=6, vector_length=8, targets=r'.*/[qv]_proj'),
        peftjax.oft(block_size=4, neumann_terms=5, targets=r'.*/[qv]_proj'),
        peftjax.p_tuning(num_virtual_tokens=3, hidden=5, targets='embed_tokens'),
        peftjax.prefix_tuning(num_virtual_tokens=3, projection=4, targets=r'.*/core'),
        peftjax.adaption_prompt(num_virtual_tokens=3, targets=r'.*/core'),
        peftjax.road(variant=4, group_size=8, targets=r'.*/[qv]_proj'),
    ],
    ids=lambda transform: transform.about.name,
)
def test_what_is_trained_here_computes_the_same_when_read_back(transform, scan, tmp_path):
    model = _base('llama', scan)
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=3)
    ids = np.arange(1, 13, dtype=np.int32).reshape(2, 6)
    before = peftjax.adapt(model, transform)(adapter, frozen, input_ids=ids)
    peftjax.save_adapter(tmp_path / 'new', model, transform, adapter, base_model='some/base')
    config = json.loads((tmp_path / 'new' / CONFIG).read_text())
    assert config['base_model_name_or_path'] == 'some/base' and config['task_type'] == 'CAUSAL_LM'
    loaded = peftjax.load_adapter(tmp_path / 'new', model)
    after = peftjax.adapt(model, loaded.transform)(loaded.adapter, loaded.frozen, input_ids=ids)
    np.testing.assert_allclose(before, after[:, -6:], atol=2e-5)
    assert {path.name for path in (tmp_path / 'new').iterdir()} == {CONFIG, WEIGHTS}


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (peftjax.houlsby(size=2, targets=r'.*branch'), 'bottleneck|houlsby has no form'),
        (peftjax.lora(rank=2, init='pissa', targets=r'.*/q_proj'), 'a base of its own'),
        (peftjax.fourierft(n_frequency=3, targets=r'.*/q_proj'), "draws='torch'"),
        (peftjax.select(r'.*/q_proj/kernel'), 'layer norms or for tokens alone'),
        (
            peftjax.chain(
                peftjax.lora(rank=2, targets=r'.*/q_proj'),
                peftjax.hra(rank=2, targets=r'.*/v_proj'),
            ),
            r"holds one method, here are \['lora', 'hra'\]",
        ),
        (
            peftjax.vera(rank=2, targets=r'.*/(q_proj|down_proj)'),
            'adapt matrices of one input size',
        ),
        (
            peftjax.weightwise(
                lambda key, matrix, site: {'s': matrix[0]},
                lambda a, m: m,
                targets=r'.*/q_proj',
                name='own',
            ),
            "a method of one's own",
        ),
    ],
)
def test_what_peft_does_not_have_is_refused(transform, message, tmp_path):
    model = _base('llama', True)
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=message):
        peftjax.save_adapter(tmp_path / 'new', model, transform, adapter)
    assert not (tmp_path / 'new').exists()


def _changed(tmp_path, source='llama/lora', fields=None, tensors=None):
    """A copy of a reference adapter, some of it changed; None takes a thing away."""
    target = tmp_path / 'changed'
    shutil.copytree(GOLDEN / source, target)
    config = json.loads((target / CONFIG).read_text())
    arrays = load_file(target / WEIGHTS)
    for new, old in ((fields or {}, config), (tensors or {}, arrays)):
        for name, value in new.items():
            if value is None:
                del old[name]
            else:
                old[name] = value
    (target / CONFIG).write_text(json.dumps(config))
    save_file(arrays, target / WEIGHTS)
    return target


_A = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'fields': {'peft_type': 'LILY'}}, "peft_type 'LILY' is not built here"),
        ({'fields': {'alora_invocation_tokens': [1]}}, 'alora_invocation_tokens'),
        ({'fields': {'lora_bias': True}}, 'lora_bias is True'),
        ({'fields': {'init_lora_weights': 'pissa'}}, 'convert it to plain LoRA'),
        ({'fields': {'r': 3}}, 'has rank 4, its config says 3'),
        ({'fields': {'r': '4'}}, "r is '4', no whole number"),
        ({'fields': {'lora_alpha': None}}, "lacks the field 'lora_alpha'"),
        ({'fields': {'lora_alpha': [1]}}, 'no number'),
        ({'fields': {'target_modules': ['q_proj']}}, 'which target_modules does not mean'),
        ({'fields': {'target_modules': ['q_proj', 'v_proj', 'o_proj']}}, 'lacks tensors of'),
        ({'fields': {'target_modules': r'(.*a)+q_proj'}}, 'can take for ever'),
        ({'fields': {'rank_pattern': {'((a|a)+)+': 2}}}, 'can take for ever'),
        ({'fields': {'alpha_pattern': {'(q': 2}}}, 'is no regular expression'),
        ({'fields': {'alpha_pattern': {'q_proj': 'a'}}}, "'a', the rank or alpha of .* no number"),
        (
            {'fields': {'alpha_pattern': {'k_proj': 100}}},
            "alpha_pattern 'k_proj' matches none of the adapted modules; near names: .*q_proj",
        ),
        (
            {'fields': {'rank_pattern': {r'layers\.7\..*': 2}}},
            'rank_pattern .* matches none of the adapted modules',
        ),
        (
            {
                'source': 'llama/vblora',
                'tensors': {'base_model.vblora_vector_bank': np.zeros((), np.float32)},
            },
            'does not fit',
        ),
        ({'tensors': {_A: None}}, 'lacks base_model.*q_proj.lora_A.weight'),
        ({'tensors': {_A: np.zeros((4, 5), np.float32)}}, r'is \(2, 5, 4\)|of shapes'),
        ({'tensors': {_A: np.zeros((4, 32), np.int32)}}, 'needs|is I32|floats'),
        (
            {'tensors': {_A.replace('q_proj', 'r_proj'): np.zeros((4, 32), np.float32)}},
            'belongs to no module of this model; near names',
        ),
        (
            {'tensors': {_A.replace('lora_A', 'lora_C'): np.zeros((4, 32), np.float32)}},
            '1 tensors that nothing here takes',
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(change, message, tmp_path):
    folder = _changed(tmp_path, **change)
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(folder, _base('llama', True))


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(
    'source', ['llama/lora', 'llama/vera', 'llama/dora', 'llama/lora_modules_to_save']
)
def test_a_file_of_fewer_bits_trains_in_float32(source, dtype, tmp_path):
    model = _base('llama', True)
    tensors = {
        name: value.astype(dtype) for name, value in load_file(GOLDEN / source / WEIGHTS).items()
    }
    loaded = peftjax.load_adapter(_changed(tmp_path, source, tensors=tensors), model)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.adapter)} == {np.dtype(np.float32)}
    exact = peftjax.load_adapter(GOLDEN / source, model)
    for ours, theirs in zip(
        jax.tree.leaves(loaded.adapter), jax.tree.leaves(exact.adapter), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs.astype(dtype).astype(np.float32))


def test_an_adapter_of_another_method_is_not_written(tmp_path):
    model = _base('llama', True)
    lora, dora = (make(rank=2, targets=r'.*/q_proj') for make in (peftjax.lora, peftjax.dora))
    adapter, _ = dora.init(jax.random.key(0), model)
    for form in ('peft', 'adapterhub'):
        with pytest.raises(peftjax.AdapterError, match='lora expects .* found an entry of dora'):
            peftjax.save_adapter(tmp_path / 'new', model, lora, adapter, form=form)
    assert not (tmp_path / 'new').exists()


def test_an_adapter_of_another_base_is_refused(tmp_path):
    name = 'base_model.model.model.layers.0.self_attn.q_proj.delora_w_norm'
    folder = _changed(tmp_path, 'llama/delora', tensors={name: np.ones(32, np.float32)})
    with pytest.raises(CheckpointError, match='made for another base'):
        peftjax.load_adapter(folder, _base('llama', False))


def test_pickles_and_absent_files_are_refused(tmp_path):
    model = _base('llama', True)
    with pytest.raises(CheckpointError, match='no folder of an adapter'):
        peftjax.load_adapter(tmp_path / 'no' / 'such', model)
    with pytest.raises(CheckpointError, match='does not exist'):
        peftjax.load_adapter(tmp_path, model)
    shutil.copy(GOLDEN / 'llama' / 'lora' / CONFIG, tmp_path)
    (tmp_path / 'adapter_model.bin').write_bytes(b'\x80\x04')
    with pytest.raises(CheckpointError, match='pickled weights .* never'):
        peftjax.load_adapter(tmp_path, model)


def test_layers_that_one_leaf_holds_cannot_be_taken_apart(tmp_path):
    names = [
        _A.replace('q_proj', n).replace('lora_A', c)
        for n in ('q_proj', 'v_proj')
        for c in ('lora_A', 'lora_B')
    ]
    fields = {'layers_to_transform': [1], 'layers_pattern': 'layers'}
    folder = _changed(tmp_path, fields=fields, tensors=dict.fromkeys(names))
    loaded = peftjax.load_adapter(folder, _base('llama', False))
    assert sorted(loaded.adapter) == [f'layers_1/self_attn/{n}_proj/kernel' for n in 'qv']
    with pytest.raises(CheckpointError, match='scan=False'):
        peftjax.load_adapter(folder, _base('llama', True))


def test_a_tied_table_is_refused_both_ways(tmp_path):
    model = _base('gpt2', True)
    transform = peftjax.lora(rank=2, targets='wte')
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match='peft would change the first alone'):
        peftjax.save_adapter(tmp_path, model, transform, adapter)


def test_torchs_draws_are_drawn_again():
    with np.load(GOLDEN / 'bert' / 'vera_noproj' / 'aux.npz') as file:
        (a,) = (file[name] for name in file if name.endswith('vera_A'))
        (b,) = (file[name] for name in file if name.endswith('vera_B'))
    config = json.loads((GOLDEN / 'bert' / 'vera_noproj' / CONFIG).read_text())
    ours = torch_draws.kaiming_pair(config['projection_prng_key'], config['r'], 32, 32)
    np.testing.assert_array_equal(ours[0], a)
    np.testing.assert_array_equal(ours[1], b)
    folder = GOLDEN / 'llama' / 'fourierft'
    config = json.loads((folder / CONFIG).read_text())
    with np.load(folder / 'aux.npz') as file:
        for name in file:
            inputs = 32
            outputs = 32 if 'q_proj' in name else 16
            drawn = torch_draws.permutation(
                config['random_loc_seed'], inputs * outputs, config['n_frequency']
            )
            np.testing.assert_array_equal(np.stack(np.divmod(drawn, inputs)), file[name])


@pytest.mark.parametrize(
    ('pattern', 'module', 'expected'),
    [
        ('q_proj', 'layers.0.self_attn.q_proj', True),
        ('q_proj', 'layers.0.self_attn.kq_proj', False),
        ('self_attn.q_proj', 'layers.0.self_attn.q_proj', True),
        (r'layers\.0\..*', 'layers.0.self_attn.q_proj', True),
        (r'layers\.[12]\..*', 'layers.0.self_attn.q_proj', False),
    ],
)
def test_patterns_match_at_the_end_of_a_name(pattern, module, expected):
    assert matches_end(pattern, module) is expected


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=4,
)
_SOURCES = ['llama/lora', 'llama/ia3', 'llama/vera', 'llama/shira', 'llama/prefix_tuning']


def _refused_or_read(folder):
    try:
        peftjax.load_adapter(folder, _base('llama', True))
    except CheckpointError as error:
        assert str(error)


@settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), source=st.sampled_from(_SOURCES))
def test_any_config_is_read_or_refused(data, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz') / 'adapter'
    shutil.copytree(GOLDEN / source, folder)
    config = json.loads((folder / CONFIG).read_text())
    for name in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3)):
        config[name] = data.draw(_JSON)
    (folder / CONFIG).write_text(json.dumps(config))
    _refused_or_read(folder)


@settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), source=st.sampled_from(_SOURCES), file=st.sampled_from([CONFIG, WEIGHTS]))
def test_any_damage_is_read_or_refused(data, source, file, tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz') / 'adapter'
    shutil.copytree(GOLDEN / source, folder)
    content = bytearray((folder / file).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        # Most of the damage goes where the structure is.
        content[data.draw(st.integers(0, min(len(content), 900) - 1))] ^= data.draw(
            st.integers(1, 255)
        )
    cut = data.draw(st.none() | st.integers(0, len(content)))
    (folder / file).write_bytes(bytes(content[:cut]))
    _refused_or_read(folder)
