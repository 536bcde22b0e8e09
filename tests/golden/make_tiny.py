"""Writes tiny_<variant>.npz: small random checkpoints, with the logits of transformers.

Made with torch 2.13.0 and transformers 5.23.0: python tests/golden/make_tiny.py [VARIANT ...]
Each holds 'config' (the config.json), 'weights/<tensor>' (as saved), 'inputs/<name>' and 'logits'.
"""

import json
import pathlib
import re
import sys
import tempfile

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

DECODER = {
    'vocab_size': 32,
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'max_position_embeddings': 64,
    'initializer_range': 0.3,
    'pad_token_id': 0,
    'attn_implementation': 'eager',
}
ENCODER = DECODER | {'type_vocab_size': 2, 'num_labels': 3}
del ENCODER['num_key_value_heads']
ROBERTA = ENCODER | {'type_vocab_size': 1, 'pad_token_id': 1, 'bos_token_id': 0, 'eos_token_id': 2}
LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 4.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 16,
    'rope_theta': 100.0,
}
LINEAR = {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 10000.0}
GPT2 = {
    'vocab_size': 32,
    'n_embd': 16,
    'n_inner': 24,
    'n_layer': 2,
    'n_head': 4,
    'n_positions': 64,
    'bos_token_id': 0,
    'eos_token_id': 0,
    'attn_implementation': 'eager',
}
T5 = {
    'vocab_size': 32,
    'd_model': 16,
    'd_kv': 6,
    'd_ff': 24,
    'num_layers': 2,
    'num_decoder_layers': 3,
    'num_heads': 4,
    'relative_attention_num_buckets': 8,
    'relative_attention_max_distance': 12,
    'pad_token_id': 0,
    'decoder_start_token_id': 0,
}
IMAGE = {
    'hidden_size': 16,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'image_size': 12,
    'patch_size': 4,
    'num_labels': 3,
}
SPEECH = {
    'vocab_size': 32,
    'd_model': 16,
    'num_mel_bins': 6,
    'encoder_layers': 2,
    'encoder_attention_heads': 4,
    'encoder_ffn_dim': 24,
    'decoder_layers': 3,
    'decoder_attention_heads': 2,
    'decoder_ffn_dim': 20,
    'max_source_positions': 11,
    'max_target_positions': 24,
    **dict.fromkeys(('pad_token_id', 'bos_token_id', 'eos_token_id'), 0),
    'decoder_start_token_id': 1,
    'attn_implementation': 'eager',
}
# Sliding and full attention in turn; three layers are no whole period of two.
GEMMA = DECODER | {
    'num_hidden_layers': 3,
    'head_dim': 6,
    'sliding_window': 5,
    'query_pre_attn_scalar': 10,
}
GEMMA3 = GEMMA | {
    'layer_types': ['sliding_attention', 'sliding_attention', 'full_attention'],
    'rope_parameters': {
        'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
    },
}
VARIANTS = {
    'llama': LlamaForCausalLM(LlamaConfig(**DECODER)),
    'llama_tied': LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)),
    'llama_biases': LlamaForCausalLM(LlamaConfig(**DECODER, attention_bias=True, mlp_bias=True)),
    'llama_head_dim': LlamaForCausalLM(LlamaConfig(**DECODER, head_dim=6)),
    'llama3_rope': LlamaForCausalLM(LlamaConfig(**DECODER, head_dim=8, rope_parameters=LLAMA3)),
    'linear_rope': LlamaForCausalLM(LlamaConfig(**DECODER, rope_parameters=LINEAR)),
    'mistral': MistralForCausalLM(MistralConfig(**DECODER, sliding_window=5)),
    'qwen2': Qwen2ForCausalLM(Qwen2Config(**DECODER)),
    'bert': BertForSequenceClassification(BertConfig(**ENCODER)),
    'bert_tanh': BertForSequenceClassification(BertConfig(**ENCODER, hidden_act='gelu_new')),
    'gpt2': GPT2LMHeadModel(GPT2Config(**GPT2)),
    'qwen3': Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=6)),
    'roberta': RobertaForSequenceClassification(RobertaConfig(**ROBERTA)),
    't5': T5ForConditionalGeneration(T5Config(**T5)),
    't5_gated': T5ForConditionalGeneration(
        T5Config(**T5, feed_forward_proj='gated-gelu', tie_word_embeddings=False)
    ),
    # As the files of v1.1 were written: a head of its own, the embedding under three names.
    't5_untied': T5ForConditionalGeneration(
        T5Config(**T5, feed_forward_proj='gated-gelu', tie_word_embeddings=False)
    ),
    'bert_tokens': BertForTokenClassification(BertConfig(**ENCODER)),
    'roberta_tokens': RobertaForTokenClassification(RobertaConfig(**ROBERTA)),
    'vit': ViTForImageClassification(ViTConfig(**IMAGE, intermediate_size=24)),
    'dinov2': Dinov2ForImageClassification(Dinov2Config(**IMAGE)),
    # Images of another size than the position embeddings.
    'dinov2_swiglu': Dinov2ForImageClassification(Dinov2Config(**IMAGE, use_swiglu_ffn=True)),
    'gemma2': Gemma2ForCausalLM(
        Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
    ),
    'gemma3': Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA3)),
    'whisper': WhisperForConditionalGeneration(WhisperConfig(**SPEECH)),
}


def inputs_of(variant: str) -> dict[str, torch.Tensor]:
    if variant in ('vit', 'dinov2', 'dinov2_swiglu'):
        return {
            'pixel_values': torch.randn(
                2, 3, *((8, 20) if variant == 'dinov2_swiglu' else (12, 12))
            )
        }
    written = torch.ones(2, 20, dtype=torch.int64)
    written[0, 17:] = 0
    if variant == 'whisper':
        return {
            'input_features': torch.randn(2, 6, 22),
            'decoder_input_ids': torch.randint(1, 32, (2, 20)),
            'decoder_attention_mask': written,
        }
    mask = torch.ones(2, 24, dtype=torch.int64)
    if variant.startswith('bert'):
        mask[1, 15:] = 0
        types = (torch.arange(24) > 9).long().expand(2, 24)
        return {
            'input_ids': torch.randint(1, 32, (2, 24)),
            'attention_mask': mask,
            'token_type_ids': types,
        }
    if variant.startswith('roberta'):
        mask[1, 15:] = 0
        ids = torch.randint(3, 32, (2, 24))
        return {'input_ids': torch.where(mask == 1, ids, 1), 'attention_mask': mask}
    if variant.startswith('t5'):
        mask[1, 15:] = 0
        return {
            'input_ids': torch.randint(1, 32, (2, 24)),
            'attention_mask': mask,
            'decoder_input_ids': torch.randint(1, 32, (2, 20)),
            'decoder_attention_mask': written,
        }
    mask[0, :5], mask[1, 20:] = 0, 0  # one row padded on the left, one on the right
    return {'input_ids': torch.randint(1, 32, (2, 24)), 'attention_mask': mask}


def main() -> None:
    for seed, (variant, model) in enumerate(VARIANTS.items()):
        if variant not in (sys.argv[1:] or VARIANTS):
            continue
        torch.manual_seed(seed)
        model.eval()
        if variant == 't5_untied':
            model.lm_head = torch.nn.Linear(16, 32, bias=False)
        for name, parameter in model.named_parameters():
            # Norms and biases too: at their initial ones and zeros they would test nothing.
            centre = 1.0 if re.search(r'(?i)(norm|ln_\w)\.weight$', name) else 0.0
            torch.nn.init.normal_(parameter, centre, 0.3)
        inputs = inputs_of(variant)
        with torch.no_grad():
            arrays = {'logits': model(**inputs).logits.numpy()}
        for name, value in inputs.items():
            values = value.numpy()
            arrays[f'inputs/{name}'] = (
                values if values.dtype == np.float32 else values.astype(np.int32)
            )
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            config = json.loads(pathlib.Path(folder, 'config.json').read_text())
            arrays['config'] = np.array(json.dumps(config))
            for name, value in load_file(pathlib.Path(folder, 'model.safetensors')).items():
                arrays[f'weights/{name}'] = value
        if variant == 't5_untied':
            arrays['config'] = np.array(json.dumps({**config, 'tie_word_embeddings': False}))
            for name, value in model.state_dict().items():
                arrays[f'weights/{name}'] = value.numpy()
        path = pathlib.Path(__file__).with_name(f'tiny_{variant}.npz')
        np.savez_compressed(path, **arrays)


if __name__ == '__main__':
    main()
