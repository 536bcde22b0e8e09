"""Adapters of AdapterHub come in, and go out as they came; test_oracle has their logits."""

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
from tests.oracle.cases import GOLDEN, load_base, stored

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter.safetensors'
READABLE = [
    GOLDEN / 'adapters' / name
    for name in (
        *('bert/compacter', 'bert/seq_bn_gelu_ln', 'llama/compacter', 'llama/double_seq_bn'),
        *('llama/scaled_par_bn', 'llama/seq_bn', 'bert/unipelt', 'llama/lora_gating'),
        *('llama/mam', 'llama/unipelt', 'bert/prompt_after_bos', 'bert/prompt_tuning'),
        *('bert/seq_bn_inv', 'llama/dora_unscaled', 'llama/seq_bn_inv'),
        'llama/seq_bn_inv_flexible',
        *('gpt2/compacter', 'gpt2/double_seq_bn', 'gpt2/ia3', 'gpt2/lora', 'gpt2/lora_all'),
        *('gpt2/lora_k', 'gpt2/prefix_tuning_flat', 'gpt2/seq_bn_inv'),
        *('t5_pair/cross', 't5_pair/dora', 't5_pair/double_seq_bn', 't5_pair/ia3', 't5_pair/lora'),
        *('t5_pair/lora_all', 't5_pair/lora_gating'),
    )
]


def _base(architecture, scan=True):
    return load_base(GOLDEN / architecture / 'base', None, scan)


def _name(folder):
    return folder.relative_to(GOLDEN / 'adapters').as_posix()


def _written_again(folder, model, loaded, target):
    """Writes what was read, with the same tensors; the two configs, theirs first."""
    peftjax.save_adapter(
        target, model, loaded.transform, loaded.adapter, form='adapterhub', name='a'
    )
    theirs, ours = load_file(folder / WEIGHTS), load_file(target / WEIGHTS)
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(value, ours[name], err_msg=name)
    return [json.loads((each / CONFIG).read_text()) for each in (folder, target)]


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize('folder', READABLE, ids=_name)
def test_a_file_is_written_as_it_was(folder, scan, tmp_path):
    model = _base(folder.parent.name, scan)
    loaded = peftjax.load_adapter(folder, model)
    said, saying = _written_again(folder, model, loaded, tmp_path)
    # How a start was drawn is not kept, nor is alpha where a gate stands in its place.
    members = [each['config'].get('configs', [each['config']]) for each in (said, saying)]
    for theirs, ours in zip(*members, strict=True):
        same = {'init_weights', *(['alpha'] if theirs.get('use_gating') else [])}
        assert {k: v for k, v in theirs.items() if k not in same} == {
            k: v for k, v in ours.items() if k not in same
        }
    # A base of BERT is loaded without a head here. What it is called is not the adapter's.
    apart = {'config', 'model_name', *(['model_class'] if 'bert' in _name(folder) else [])}
    assert {k: v for k, v in said.items() if k not in apart} == {
        k: v for k, v in saying.items() if k not in apart
    }


METHODS = {
    'lora': peftjax.lora(rank=2, alpha=6, targets=r'layers/self_attn/[qkv]_proj'),
    'lora everywhere': peftjax.lora(rank=2, targets=r'layers/.*/([qkv]|up|down)_proj'),
    'rslora': peftjax.lora(rank=3, alpha=5, rslora=True, targets=r'layers/self_attn/[qv]_proj'),
    'ia3': peftjax.ia3(targets=(r'layers/self_attn/[kv]_proj', r'layers/mlp/down_proj')),
    'houlsby': peftjax.houlsby(size=4, targets=r'layers/(self_attn|mlp)_branch'),
    'pfeiffer': peftjax.pfeiffer(size=4, targets=r'layers/mlp_branch', activation='gelu_tanh'),
    'parallel': peftjax.parallel_adapter(size=4, targets=r'layers/mlp_branch', scale='learned'),
    'gated': peftjax.bottleneck(
        size=4, targets=r'layers/mlp_branch', gate=True, norm_before=True, activation='relu'
    ),
    'gated lora': peftjax.gated(peftjax.lora(rank=2, targets=r'layers/self_attn/[qv]_proj')),
    'prefix': peftjax.prefix_tuning(
        num_virtual_tokens=3, shift_positions=False, targets=r'.*core', gate=True
    ),
    'prefix by a network': peftjax.prefix_tuning(
        num_virtual_tokens=3, projection=5, shift_positions=False, targets=r'.*core'
    ),
    'compacter': peftjax.compacter(size=4, terms=2, targets=r'layers/(self_attn|mlp)_branch'),
    'dora': peftjax.dora(rank=2, targets=r'layers/self_attn/[qv]_proj'),
    'vera': peftjax.vera(rank=2, targets=r'layers/self_attn/q_proj'),
    'loreft': peftjax.loreft(rank=2, positions='f2+l1', targets=r'layers'),
    'loreft at one end': peftjax.loreft(rank=2, positions='l3', targets=r'layers'),
    'noreft': peftjax.noreft(rank=2, positions='f1+l2', targets=r'layers'),
    'noreft tied': peftjax.noreft(rank=2, positions='l2', tied=True, targets=r'layers'),
    'invertible': peftjax.chain(
        peftjax.invertible_adapter(size=3, targets=r'embed_tokens', inverse='norm'),
        peftjax.pfeiffer(size=4, targets=r'layers/mlp_branch'),
    ),
}


# On one matrix of query, key and value, and on an encoder and a decoder.
ELSEWHERE = {
    'gpt2': {
        'lora': peftjax.lora(rank=3, alpha=6, targets=r'.*/c_attn'),
        'lora everywhere': peftjax.lora(rank=3, targets=r'.*/(c_attn|mlp/c_fc|mlp/c_proj)'),
        'ia3': peftjax.ia3(targets=r'.*/(c_attn|c_fc)'),
        'houlsby': peftjax.houlsby(size=4, targets=r'layers.*/(attn|mlp)_branch'),
        'vera': peftjax.vera(rank=2, targets=r'.*/mlp/c_fc'),
        'loreft': peftjax.loreft(rank=2, positions='f2+l1', targets=r'layers(_\d)?'),
        'prefix': peftjax.prefix_tuning(
            num_virtual_tokens=3, projection=4, shift_positions=False, targets=r'.*core'
        ),
        'invertible': peftjax.chain(
            peftjax.invertible_adapter(size=3, targets='dropout', inverse='ln_f'),
            peftjax.pfeiffer(size=4, targets=r'layers.*/mlp_branch'),
        ),
    },
    't5_pair': {
        'cross': peftjax.houlsby(size=3, targets=r'.*_branch'),
        'pfeiffer': peftjax.pfeiffer(size=3, targets=r'.*ffn_branch'),
        'pfeiffer in the encoder': peftjax.pfeiffer(size=3, targets=r'encoder/.*ffn_branch'),
        'compacter': peftjax.compacter(size=4, terms=2, targets=r'.*(self_attn|ffn)_branch'),
        'lora': peftjax.lora(rank=2, targets=r'.*(attn/[qkv]|ffn/w[io])'),
        'ia3': peftjax.ia3(targets=r'.*(attn/[kv]|ffn/wi)'),
        'gated': peftjax.gated(peftjax.lora(rank=2, targets=r'.*attn/[qv]')),
    },
}


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'looped'])
@pytest.mark.parametrize(
    ('base', 'name'), [(base, name) for base, methods in ELSEWHERE.items() for name in methods]
)
def test_what_is_written_for_other_families_computes_the_same(base, name, scan, tmp_path):
    model, transform = _base(base, scan), ELSEWHERE[base][name]
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    peftjax.save_adapter(tmp_path, model, transform, adapter, form='adapterhub', name='mine')
    again = peftjax.load_adapter(tmp_path, model)
    case = stored(f'adapters/{base}/{"cross" if base == "t5_pair" else "lora"}')
    np.testing.assert_allclose(
        peftjax.adapt(model, transform)(adapter, frozen, **case.inputs),
        peftjax.adapt(model, again.transform)(again.adapter, again.frozen, **case.inputs),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ('base', 'transform', 'message'),
    [
        (
            't5_pair',
            peftjax.prefix_tuning(num_virtual_tokens=2, targets='.*core', shift_positions=False),
            'counts their distances from queries so many places earlier',
        ),
        (
            't5_pair',
            peftjax.loreft(rank=2, positions='f1', targets='encoder/layers'),
            'counts the tokens of an encoder also where its ReFT edits',
        ),
        (
            't5_pair',
            peftjax.chain(
                peftjax.invertible_adapter(size=2, targets='embed'),
                peftjax.pfeiffer(size=2, targets=r'.*ffn_branch'),
            ),
            'an invertible adapter before the encoder alone',
        ),
        (
            't5_pair',
            peftjax.pfeiffer(size=2, targets='encoder/.*ffn_branch|decoder/.*self_attn_branch'),
            'encoder.block.0.layer.0.* would be adapted too',
        ),
        (
            'gpt2',
            peftjax.gated(peftjax.lora(rank=2, targets='.*c_attn')),
            'a gate for each of query, key and value, not for all',
        ),
        (
            'gpt2',
            peftjax.lora(rank=2, rank_pattern={'.*c_fc/kernel': 3}, targets='.*(c_fc|mlp/c_proj)'),
            'has one rank for all matrices',
        ),
        (
            'gpt2',
            peftjax.lora(rank=3, rank_pattern={'.*c_fc/kernel': 2}, targets='.*(c_fc|c_attn)'),
            'a LoRA of rank 3 on one matrix of query, key and value, beside others of rank 2',
        ),
    ],
)
def test_what_has_no_form_for_other_families_is_refused(base, transform, message, tmp_path):
    model = _base(base)
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=message):
        peftjax.save_adapter(tmp_path / 'out', model, transform, adapter, form='adapterhub')


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('gpt2/lora', lambda c: c.update(attn_matrices=['q']), 'for q of rank 2'),
        ('gpt2/lora', lambda c: c.update(attn_matrices=['x']), 'none of q, k, v'),
        ('gpt2/ia3', lambda c: c.update(attn_matrices=['q', 'k', 'v']), 'scales for qkv'),
        ('gpt2/lora', lambda c: c.update(use_dora=True), 'on one matrix of query, key and value'),
        ('t5_pair/cross', lambda c: c.update(cross_adapter=1), 'cross_adapter is 1'),
        ('t5_pair/cross', lambda c: c.update(inv_adapter='nice'), 'before the encoder alone'),
    ],
)
def test_files_of_other_families_that_mean_something_else_are_refused(
    name, change, message, tmp_path
):
    folder = shutil.copytree(GOLDEN / 'adapters' / name, tmp_path / 'copy')
    config = json.loads((folder / CONFIG).read_text())
    change(config['config'])
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(folder, _base(name.partition('/')[0]))


@pytest.mark.parametrize('architecture', ['prefix_tuning', 'reft'])
def test_files_of_t5_that_count_tokens_elsewhere_are_refused(architecture, tmp_path):
    folder = shutil.copytree(GOLDEN / 'adapters/t5_pair/lora', tmp_path / 'copy')
    config = json.loads((folder / CONFIG).read_text())
    config['config']['architecture'] = architecture
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match='AdapterHub (puts a prefix|counts the tokens)'):
        peftjax.load_adapter(folder, _base('t5_pair'))


@pytest.mark.parametrize('name', METHODS)
def test_what_is_written_is_read_again(name, tmp_path):
    model, transform = _base('llama'), METHODS[name]
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, seed=1)
    peftjax.save_adapter(tmp_path, model, transform, adapter, form='adapterhub', name='mine')
    again = peftjax.load_adapter(tmp_path, model, reft='noreft' if 'noreft' in name else None)
    if 'loreft' not in name:  # whose projection is written as the orthonormal one it stands for
        jax.tree.map(np.testing.assert_array_equal, adapter, again.adapter)
    inputs = stored('adapters/llama/seq_bn').inputs
    np.testing.assert_allclose(
        peftjax.adapt(model, transform)(adapter, frozen, **inputs),
        peftjax.adapt(model, again.transform)(again.adapter, again.frozen, **inputs),
        atol=1e-5,
    )


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
            'no places of an adapter',
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
        (peftjax.houlsby(size=2, targets=r'.*norm'), 'no places of an adapter'),
        (
            peftjax.pfeiffer(size=2, targets=r'.*mlp_branch', activation=jax.nn.relu),
            'has no name that a file could hold',
        ),
    ],
)
def test_what_has_no_form_there_is_refused(transform, message, tmp_path):
    model = _base('llama')
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=message):
        peftjax.save_adapter(tmp_path / 'out', model, transform, adapter, form='adapterhub')
    assert not (tmp_path / 'out').exists()


def test_dora_beside_a_bias_is_refused(tmp_path):
    transform = peftjax.dora(rank=2, targets=r'.*/query')
    adapter, _ = transform.init(jax.random.key(0), _base('bert'))
    with pytest.raises(ValueError, match='have biases, which the DoRA of AdapterHub multiplies'):
        peftjax.save_adapter(tmp_path, _base('bert'), transform, adapter, form='adapterhub')


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
    adapter, _ = transform.init(jax.random.key(0), _base('llama'))
    with pytest.raises(ValueError, match="form is 'peft' or 'adapterhub', got 'gguf'"):
        peftjax.save_adapter(tmp_path, _base('llama'), transform, adapter, form='gguf')


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
        (lambda c, t: t.update({DOWN.replace('.0.out', '.9.out'): t[DOWN]}), 'no place of an'),
        (lambda c, t: t.update(surprise=t[DOWN]), 'nothing here takes: surprise'),
    ],
)
def test_files_that_mean_something_else_are_refused(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(_copy(tmp_path, change), _base('llama'))


@pytest.mark.parametrize(
    ('name', 'told', 'message'),
    [
        ('noreft', {}, "write reft='noreft' or reft='direft' as it was trained"),
        ('direft', {'reft': 'loreft'}, "reft is 'loreft'; write one of"),
        ('loreft', {'reft': 'noreft'}, "says itself what reft='noreft' would tell"),
        ('seq_bn', {'task': 1}, 'says itself what task=1 would tell'),
    ],
)
def test_what_a_file_leaves_out_is_told_and_nothing_else(name, told, message):
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(GOLDEN / 'adapters/llama' / name, _base('llama'), **told)


def test_direft_does_not_subtract_what_it_reads():
    folder, model = GOLDEN / 'adapters/llama/direft', _base('llama')
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
        peftjax.load_adapter(folder, _base('llama'))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**6), st.floats(), st.text(max_size=4),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=2), st.none()),
)  # fmt: skip


@settings(
    deadline=2000, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
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
        loaded = peftjax.load_adapter(folder, _base('llama'))
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
        peftjax.load_adapter(_copy(tmp_path, change, name), _base('llama'))
