"""Files of Hugging Face's peft that are not read, and methods that are not written as one."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.names import matches_end
from tests.oracle.cases import GOLDEN
from tests.peft_folders import CONFIG, base, changed

A = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (peftjax.houlsby(size=2, targets=r'.*branch'), 'bottleneck|houlsby has no form'),
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
            'a method of your own',
        ),
    ],
)
def test_what_peft_does_not_have_is_refused(transform, message, tmp_path):
    model = base('llama', True)
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=message):
        peftjax.save_adapter(tmp_path / 'new', model, transform, adapter)
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    ('task', 'changes', 'message'),
    [
        (None, {}, r'a prompt for each of 3 tasks, and task is None; write .*task=0'),
        (3, {}, 'task is 3'),
        (True, {}, 'task is True'),
        (0, {'fields': {'num_tasks': 2}}, r'are \(\(3, 5, 2\), \(3, 2, 32\)\), need \(\(2, 5, 2\)'),
        (0, {'tensors': {'prefix_task_rows': None}}, 'prefix_task_cols and prefix_task_rows are'),
        (0, {'tensors': {'prompt_embeddings': None}}, 'prefix_task_cols and prefix_task_rows are'),
    ],
)
def test_a_prompt_of_several_tasks_is_read_for_one(task, changes, message, tmp_path):
    folder = changed(tmp_path, 'llama/multitask_prompt_tuning', **changes)
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(folder, base('llama', True), task=task)


def test_a_task_of_a_file_without_any_is_refused():
    with pytest.raises(CheckpointError, match='has no use for task=0'):
        peftjax.load_adapter(GOLDEN / 'llama/lora', base('llama', True), task=0)


def test_an_adapter_of_another_method_is_not_written(tmp_path):
    model = base('llama', True)
    lora, dora = (make(rank=2, targets=r'.*/q_proj') for make in (peftjax.lora, peftjax.dora))
    adapter, _ = dora.init(jax.random.key(0), model)
    for form in ('peft', 'adapterhub'):
        with pytest.raises(peftjax.AdapterError, match='lora expects .* found an entry of dora'):
            peftjax.save_adapter(tmp_path / 'new', model, lora, adapter, form=form)
    assert not (tmp_path / 'new').exists()


def test_a_tied_table_is_refused_both_ways(tmp_path):
    model = base('gpt2', True)
    transform = peftjax.lora(rank=2, targets='wte')
    adapter, _ = transform.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match='peft would change only the lookup'):
        peftjax.save_adapter(tmp_path, model, transform, adapter)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'fields': {'peft_type': 'LILY'}}, "peft_type 'LILY' is not built here"),
        ({'fields': {'peft_type': 'XLORA'}}, 'shares from the last hidden states of a first pass'),
        ({'fields': {'alora_invocation_tokens': 'go'}}, 'is go, no list of ids'),
        ({'fields': {'alora_invocation_tokens': [-1]}}, 'must be token ids'),
        ({'fields': {'alora_invocation_tokens': [1], 'task_type': 'SEQ_CLS'}}, 'never activates'),
        ({'fields': {'lora_bias': True}}, 'lacks .*lora_B.bias'),
        ({'fields': {'init_lora_weights': 'corda'}}, 'convert it to plain LoRA'),
        ({'fields': {'r': 3}}, 'has rank 4, its config says 3'),
        ({'fields': {'r': '4'}}, "r is '4', no whole number"),
        ({'fields': {'lora_alpha': None}}, "lacks the field 'lora_alpha'"),
        ({'fields': {'lora_alpha': [1]}}, 'no number'),
        ({'fields': {'target_modules': ['q_proj']}}, 'which target_modules does not mean'),
        ({'fields': {'target_modules': ['q_proj', 'v_proj', 'o_proj']}}, 'lacks tensors of'),
        ({'fields': {'target_modules': r'(.*a)+q_proj'}}, 'does not mean'),
        ({'fields': {'target_modules': '.?' * 60 + '!'}}, 'does not mean'),
        ({'fields': {'target_modules': '(.|.)' * 25 + '!'}}, 'does not mean'),
        ({'fields': {'exclude_modules': '(.|.)*q_proj'}}, 'does not mean'),
        ({'fields': {'rank_pattern': {'((a|a)+)+': 2}}}, 'matches none of the adapted modules'),
        ({'fields': {'rank_pattern': {'.?' * 60 + '!': 2}}}, 'matches none of the adapted'),
        (
            {'fields': {'layers_to_transform': [0], 'layers_pattern': '.?' * 60 + '!'}},
            'does not mean',
        ),
        ({'fields': {'target_modules': r'(?!a).*q_proj'}}, 'list the modules by name'),
        ({'fields': {'target_modules': r'((a{100}){100}){100}'}}, 'list the modules by name'),
        ({'fields': {'alpha_pattern': {'(q': 2}}}, 'none that RE2 matches .*missing'),
        ({'fields': {'alpha_pattern': {'a)|(b': 2}}}, 'none that RE2 matches'),
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
        ({'tensors': {A: None}}, 'lacks base_model.*q_proj.lora_A.weight'),
        ({'tensors': {A: np.zeros((4, 5), np.float32)}}, r'is \(2, 5, 4\)|of shapes'),
        ({'tensors': {A: np.zeros((4, 32), np.int32)}}, 'needs|is I32|floats'),
        (
            {'tensors': {A.replace('q_proj', 'r_proj'): np.zeros((4, 32), np.float32)}},
            'belongs to no module of this model; near names',
        ),
        (
            {'tensors': {A.replace('lora_A', 'lora_C'): np.zeros((4, 32), np.float32)}},
            '1 tensor that nothing here takes',
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(change, message, tmp_path):
    folder = changed(tmp_path, **change)
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(folder, base('llama', True))


def test_an_adapter_of_another_base_is_refused(tmp_path):
    name = 'base_model.model.model.layers.0.self_attn.q_proj.delora_w_norm'
    folder = changed(tmp_path, 'llama/delora', tensors={name: np.ones(32, np.float32)})
    with pytest.raises(CheckpointError, match='made for another base'):
        peftjax.load_adapter(folder, base('llama', False))


def test_pickles_and_absent_files_are_refused(tmp_path):
    model = base('llama', True)
    with pytest.raises(CheckpointError, match='not the folder of an adapter'):
        peftjax.load_adapter(tmp_path / 'no' / 'such', model)
    with pytest.raises(CheckpointError, match='does not exist'):
        peftjax.load_adapter(tmp_path, model)
    shutil.copy(GOLDEN / 'llama' / 'lora' / CONFIG, tmp_path)
    (tmp_path / 'adapter_model.bin').write_bytes(b'\x80\x04')
    with pytest.raises(CheckpointError, match='pickled weights .* never'):
        peftjax.load_adapter(tmp_path, model)


def test_layers_that_one_leaf_holds_cannot_be_taken_apart(tmp_path):
    names = [
        A.replace('q_proj', n).replace('lora_A', c)
        for n in ('q_proj', 'v_proj')
        for c in ('lora_A', 'lora_B')
    ]
    fields = {'layers_to_transform': [1], 'layers_pattern': 'layers'}
    folder = changed(tmp_path, fields=fields, tensors=dict.fromkeys(names))
    loaded = peftjax.load_adapter(folder, base('llama', False))
    assert sorted(loaded.adapter) == [f'layers_1/self_attn/{n}_proj/kernel' for n in 'qv']
    with pytest.raises(CheckpointError, match='scan=False'):
        peftjax.load_adapter(folder, base('llama', True))


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


def _with_a_table(ids, rows):
    """A file with token rows of one embedding, and another table around them."""

    def made(tmp_path):
        module = 'base_model.model.model.embed_tokens.token_adapter'
        source = load_file(GOLDEN / 'llama/trainable_tokens/adapter_model.safetensors')
        (name,) = source
        return changed(
            tmp_path,
            'llama/trainable_tokens',
            {'token_indices': ids},
            {
                name: np.ones((rows, 32), np.float32),
                f'{module}.base_layer.weight': np.full((64, 32), 0.5, np.float32),
            },
        )

    return made


@pytest.mark.parametrize(
    ('ids', 'rows', 'message'),
    [
        ([3, 7, 11], 1, r'is \(1, 32\), and 3 tokens .* need \(3, 32\)'),
        ([-1, 7, 11], 3, 'not numbers from 0 on, each once'),
        ([3, 3, 3], 3, 'not numbers from 0 on, each once'),
    ],
)
def test_token_rows_that_do_not_fit_their_tokens_are_refused(ids, rows, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        peftjax.load_adapter(_with_a_table(ids, rows)(tmp_path), base('llama', True))


def test_blocks_that_ask_for_more_than_the_matrix_are_refused(tmp_path):
    source = load_file(GOLDEN / 'llama/lora_bdlora/adapter_model.safetensors')
    tensors = {
        name: np.ones((100_000, value.shape[1]), np.float32)
        for name, value in source.items()
        if '.o_proj.lora_A' in name
    }
    folder = changed(tmp_path, 'llama/lora_bdlora', tensors=tensors)
    with pytest.raises(CheckpointError, match='rank 100000, but its matrix is'):
        peftjax.load_adapter(folder, base('llama', False))


@pytest.mark.parametrize('adapter', ['bert/lora', 'tiny_llama_tokens/lora'])
def test_a_head_that_the_model_lacks_is_named(adapter):
    architecture = adapter.partition('/')[0].removesuffix('_tokens')
    model = peftjax.load(GOLDEN / architecture / 'base')
    with pytest.raises(CheckpointError, match='are of a head, .* num_labels=3'):
        peftjax.load_adapter(GOLDEN / adapter, model)
