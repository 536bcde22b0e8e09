"""Adapters of Hugging Face's peft go out as they came in; test_oracle has their logits."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax
from peftjax.methods import torch_draws
from tests.oracle.cases import GOLDEN, stored
from tests.peft_folders import CONFIG, WEIGHTS, base, changed

BASES = ('llama', 'bert', 'gpt2')
FOLDERS = sorted(
    path.parent for path in GOLDEN.glob(f'*/*/{CONFIG}') if path.parents[1].name in BASES
)
# The signs of singular vectors are not in the file.
READABLE = [folder for folder in FOLDERS if folder.name != 'psoft']
# The base without what the start took of it goes out as LoRA on the whole base.
STARTED = {'lora_pissa', 'lora_olora'}
# What we write beside or in place of a tensor of theirs; all else is the same byte for byte.
WRITTEN_OTHERWISE = {
    'llama/delora': r'the lengths of rows, in other last digits',
    'llama/lora_embedding': r'the frozen table beside its factors is left out',
    'llama/dora_embedding': r'the frozen table beside its factors is left out',
    'llama/lora_lm_head': r'the frozen head beside its factors is left out',
    'llama/lora_bdlora': r'blocks are written as matrices',
    'bert/lora_bias_all': r'an unused copy of the head is left out',
    'bert/vera_noproj': r'projections are written',
    'llama/multitask_prompt_tuning': r'the prompt of one task',
}


TASKS = {'multitask_prompt_tuning': 1}


def _name(folder):
    return folder.relative_to(GOLDEN).as_posix()


def _forms(tree):
    shapes = [(leaf.shape, jnp.dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tuple(tree)), shapes


@pytest.mark.sampled
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize('folder', READABLE, ids=map(_name, READABLE))
def test_a_file_of_peft_goes_out_as_it_came(folder, scan, tmp_path):
    model = base(folder.parent.name, scan)
    loaded = peftjax.load_adapter(folder, model, task=TASKS.get(folder.name))
    # What is read is what `init` makes, but for its numbers.
    fresh = jax.eval_shape(loaded.transform.init, jax.random.key(0), model)
    assert _forms(fresh) == _forms((loaded.adapter, loaded.frozen))
    if folder.name == 'randlora' or folder.name in STARTED:
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


@pytest.mark.sampled
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
        peftjax.lora(rank=3, alpha=5, bias=True, targets=r'.*/[qv]_proj'),
        peftjax.kasa(rank=3, alpha_pattern={r'.*v_proj.*': 5}, targets=r'.*/[qv]_proj'),
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
    model = base('llama', scan)
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


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(
    'source', ['llama/lora', 'llama/vera', 'llama/dora', 'llama/lora_modules_to_save']
)
def test_a_file_of_fewer_bits_trains_in_float32(source, dtype, tmp_path):
    model = base('llama', True)
    tensors = {
        name: value.astype(dtype) for name, value in load_file(GOLDEN / source / WEIGHTS).items()
    }
    loaded = peftjax.load_adapter(changed(tmp_path, source, tensors=tensors), model)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.adapter)} == {np.dtype(np.float32)}
    exact = peftjax.load_adapter(GOLDEN / source, model)
    for ours, theirs in zip(
        jax.tree.leaves(loaded.adapter), jax.tree.leaves(exact.adapter), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs.astype(dtype).astype(np.float32))


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


def test_rows_of_several_tasks_share_one_batch():
    case, model = stored('llama/multitask_prompt_tuning'), base('llama', True)
    members = [peftjax.load_adapter(case.folder, model, task=task) for task in range(3)]
    bank, frozen = peftjax.serving.bank(model, members)
    inputs = dict(case.inputs)
    slots = inputs.pop('task_ids') + 1
    found = peftjax.serving.adapt(model)(bank, slots, frozen, **inputs)
    # peft leaves the five virtual tokens in what the model gives.
    theirs, real = case.outputs['logits'][:, 5:], inputs['attention_mask'] == 1
    np.testing.assert_allclose(np.asarray(found)[real], theirs[real], atol=1e-5)


@pytest.mark.parametrize('architecture', ['llama', 'bert'])
def test_a_file_of_the_bare_backbone_is_read(architecture, tmp_path):
    source, prefix = f'{architecture}/lora', {'llama': 'model.', 'bert': 'bert.'}[architecture]
    names = load_file(GOLDEN / source / WEIGHTS)
    removed = f'base_model.model.{prefix}'
    kept = {name: value for name, value in names.items() if name.startswith(removed)}
    bare = {f'base_model.model.{name.removeprefix(removed)}': v for name, v in kept.items()}
    fields = {'modules_to_save': None, 'target_modules': _whole_names(bare)}
    folder = changed(tmp_path, source, fields, {**dict.fromkeys(names), **bare})
    model = base(architecture, True)
    ours = peftjax.load_adapter(folder, model).adapter
    theirs = peftjax.load_adapter(GOLDEN / source, model).adapter
    theirs = theirs[-1] if isinstance(theirs, tuple) else theirs
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(theirs)))


def _whole_names(tensors):
    """A pattern that means the modules of these by their whole names."""
    modules = {name.partition('.lora_')[0].removeprefix('base_model.model.') for name in tensors}
    return '|'.join(sorted(map(re.escape, modules)))
