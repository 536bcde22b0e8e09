"""What files of AdapterHub cannot hold or mean something else by is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax.core.rules import ModuleRule
from peftjax.interop.errors import CheckpointError
from tests.checkpoint_files import golden, write_folder
from tests.oracle.cases import GOLDEN, stored
from tests.test_adapterhub import CONFIG, METHODS, WEIGHTS, base_of


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (peftjax.hra(rank=2, targets=r'.*q_proj'), 'hra has no file of AdapterHub here'),
        (peftjax.vera(rank=2, targets=r'.*[qv]_proj'), 'shares two matrices of one shape'),
        (
            peftjax.direft(rank=2, positions='f1', targets=r'layers'),
            'direft has no file of AdapterHub here: that library reads such a file as NoReFT',
        ),
        (peftjax.loreft(rank=2, targets=r'layers'), 'edits the first and last tokens'),
        (
            peftjax.loreft(rank=2, positions='f1', targets=r'layers/mlp'),
            'not places of an adapter',
        ),
        (
            peftjax.prompt_tuning(num_virtual_tokens=2, targets=r'embed_tokens'),
            'has prompts for BERT and RoBERTa',
        ),
        (
            peftjax.invertible_adapter(size=2, targets=r'embed_tokens'),
            'an invertible adapter beside a bottleneck alone',
        ),
        (
            peftjax.chain(
                peftjax.invertible_adapter(size=2, targets=r'embed_tokens', activation='swish'),
                peftjax.pfeiffer(size=2, targets=r'.*mlp_branch'),
            ),
            'a bottleneck of the same activation',
        ),
        (
            peftjax.lora(rank=2, alpha_pattern={r'.*q_proj/kernel': 6}, targets=r'.*[qv]_proj'),
            'has one alpha / rank for all matrices',
        ),
        (peftjax.lora(rank=2, targets=r'.*o_proj'), 'none of the matrices that AdapterHub adapts'),
        (peftjax.ia3(targets=r'.*k_proj', feedforward=r'.*down_proj'), 'not its input'),
        (
            peftjax.gated(peftjax.lora(rank=2, alpha=6, targets=r'.*q_proj')),
            'gates LoRA alone, and in place of alpha',
        ),
        (
            peftjax.prefix_tuning(num_virtual_tokens=2, targets=r'.*core'),
            'write shift_positions=False',
        ),
        (peftjax.houlsby(size=2, targets=r'.*norm'), 'not places of an adapter'),
        (
            peftjax.pfeiffer(size=2, targets=r'.*mlp_branch', activation=jax.nn.relu),
            'has no name that a file could hold',
        ),
    ],
)
def test_what_has_no_form_there_is_refused(transform, message, tmp_path):
    model = base_of('llama')
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=message):
        peftjax.save_adapter(tmp_path / 'out', model, transform, adapter, form='adapterhub')
    assert not (tmp_path / 'out').exists()


def test_dora_beside_a_bias_is_refused(tmp_path):
    transform = peftjax.dora(rank=2, targets=r'.*/query')
    adapter, _ = transform.init(jax.random.key(0), base_of('bert'))
    with pytest.raises(ValueError, match='have biases, which the DoRA of AdapterHub multiplies'):
        peftjax.save_adapter(tmp_path, base_of('bert'), transform, adapter, form='adapterhub')


@pytest.mark.parametrize('place', [0, 1])
def test_behind_the_embeddings_tokens_keep_their_positions(place, tmp_path):
    # RoBERTa numbers its tokens itself, padding left out; the library's are made behind that.
    config, weights, inputs, _ = golden('roberta')
    folder = write_folder(tmp_path, config, weights)
    model = peftjax.load(folder, task='classification')
    transform = peftjax.prompt_tuning(
        num_virtual_tokens=2,
        init='normal',
        places=(place, place),
        shift_positions=False,
        targets=r'embeddings',
    )
    seen = []

    def record(leaves, use):
        del leaves
        jax.debug.callback(lambda ids: seen.append(np.asarray(ids)), use.inputs[-1])
        return use.output

    watch = peftjax.PeftTransform(
        lambda key, model: (),
        lambda adapter, own: {'embeddings': ModuleRule((), record)},
    )
    for tx in (peftjax.chain(watch, transform), watch):
        peftjax.adapt(model, tx)(*tx.init(jax.random.key(0), model), **inputs)
    jax.effects_barrier()
    longer, plain = seen
    np.testing.assert_array_equal(np.delete(longer, [place, place + 1], axis=1), plain)


@pytest.mark.parametrize(('variant', 'message'), [('qwen2', 'qkv_bias'), ('gemma2', 'GemmaConfig')])
def test_other_families_are_refused(variant, message, tmp_path):
    config, weights, _, _ = golden(variant)
    model = peftjax.load(write_folder(tmp_path, config, weights))
    with pytest.raises(ValueError, match=f'AdapterHub files are .* {message}'):
        peftjax.load_adapter(GOLDEN / 'adapters/llama/seq_bn', model)


def test_an_unknown_form_is_refused(tmp_path):
    transform = METHODS['lora']
    adapter, _ = transform.init(jax.random.key(0), base_of('llama'))
    with pytest.raises(ValueError, match="form is 'peft' or 'adapterhub', got 'gguf'"):
        peftjax.save_adapter(tmp_path, base_of('llama'), transform, adapter, form='gguf')


OWN = ('seq_bn_inv', 'seq_bn_inv_flexible', 'dora', 'dora_unscaled', 'loreft')


def _copy(tmp_path, change, name='seq_bn'):
    """A file for Llama, changed."""
    folder = shutil.copytree(GOLDEN / 'adapters/llama' / name, tmp_path / 'copy')
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    change(config, tensors)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS)
    return folder


DOWN = 'model.layers.0.output_adapters.adapters.a.adapter_down.0.weight'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c, t: c['config'].update(inv_adapter='nice'), 'lacks invertible_adapters.a.F'),
        (lambda c, t: c['config'].update(inv_adapter='glow'), "inv_adapter is 'glow'"),
        (lambda c, t: c['config'].update(surprise=1), 'surprise'),
        (lambda c, t: c['config'].update(ln_before='false'), "ln_before is 'false'"),
        (lambda c, t: c['config'].update(non_linearity='mish'), 'mish'),
        (lambda c, t: c['config'].update(scaling='big'), 'scaling'),
        (lambda c, t: c.update(name='b'), "no bottleneck called 'b'"),
        (lambda c, t: c.pop('name'), 'names no adapter'),
        (lambda c, t: t.pop(DOWN), 'lacks layers.0.output_adapters.*adapter_down.0.weight'),
        (lambda c, t: t.update({DOWN.replace('.0.out', '.9.out'): t[DOWN]}), 'not a place of an'),
        (lambda c, t: t.update(surprise=t[DOWN]), 'nothing here takes: surprise'),
    ],
)
def test_files_that_mean_something_else_are_refused(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(_copy(tmp_path, change), base_of('llama'))


@pytest.mark.parametrize(
    ('name', 'told', 'message'),
    [
        ('noreft', {}, "write reft='noreft' or reft='direft' as it was trained"),
        ('direft', {'reft': 'loreft'}, "reft is 'loreft'; write one of"),
        ('loreft', {'reft': 'noreft'}, "has no use for reft='noreft'"),
        ('seq_bn', {'task': 1}, 'has no use for task=1'),
    ],
)
def test_what_a_file_leaves_out_is_told_and_nothing_else(name, told, message):
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(GOLDEN / 'adapters/llama' / name, base_of('llama'), **told)


def test_direft_does_not_subtract_what_it_reads():
    folder, model = GOLDEN / 'adapters/llama/direft', base_of('llama')
    kinds = [peftjax.load_adapter(folder, model, reft=kind) for kind in ('direft', 'noreft')]
    plain, subtracted = (
        peftjax.adapt(model, each.transform)(
            each.adapter, each.frozen, **stored('adapters/llama/direft').inputs
        )
        for each in kinds
    )
    assert np.abs(plain - subtracted).max() > 1e-2


def test_pickled_weights_are_never_read(tmp_path):
    folder = shutil.copytree(GOLDEN / 'adapters/llama/seq_bn', tmp_path / 'copy')
    (folder / WEIGHTS).rename(folder / 'pytorch_adapter.bin')
    with pytest.raises(CheckpointError, match='only safetensors are read, pickled weights'):
        peftjax.load_adapter(folder, base_of('llama'))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**6), st.floats(), st.text(max_size=4),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=2), st.none()),
)  # fmt: skip


@settings(
    deadline=20_000, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_config_and_tensor_is_read_or_refused(data, tmp_path_factory):
    def change(config, tensors):
        members = config['config'].get('configs', [config['config']])
        for _ in range(data.draw(st.integers(1, 3))):
            where = data.draw(st.sampled_from(['inner', 'outer', 'tensor']))
            if where == 'tensor':
                name = data.draw(st.sampled_from(sorted(tensors)))
                shape = data.draw(st.lists(st.integers(0, 9), max_size=3))
                tensors[name] = np.zeros(shape, np.float32)
            else:
                target = config if where == 'outer' else data.draw(st.sampled_from(members))
                target[data.draw(st.sampled_from(sorted(target)))] = data.draw(VALUES)

    name = data.draw(
        st.sampled_from(['seq_bn', 'unipelt', 'compacter', 'lora_gating', 'loreft_pos', *OWN])
    )
    folder = _copy(tmp_path_factory.mktemp('fuzz'), change, name)
    try:
        loaded = peftjax.load_adapter(folder, base_of('llama'))
    except CheckpointError as error:
        assert str(error)
        return
    finally:
        shutil.rmtree(folder)
    assert loaded.transform.about is not None


@pytest.mark.parametrize(
    ('name', 'ending'), [('seq_bn', 'adapter_down.0.bias'), ('seq_bn_inv', 'F.0.bias')]
)
def test_a_number_in_the_place_of_a_bias_is_refused(name, ending, tmp_path):
    def change(config, tensors):
        for each in [each for each in tensors if each.endswith(ending)]:
            tensors[each] = np.zeros([], np.float32)

    with pytest.raises(CheckpointError, match=r'\(1,\)|needs|shape|size'):
        peftjax.load_adapter(_copy(tmp_path, change, name), base_of('llama'))
