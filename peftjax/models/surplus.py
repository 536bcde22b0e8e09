"""Tensors in checkpoints of a family that a module does not use: regexes of their names."""

from peftjax.models.bert import Bert
from peftjax.models.bert_config import RobertaConfig
from peftjax.models.decoder import Decoder
from peftjax.models.t5 import T5
from peftjax.models.vit import ViT
from peftjax.models.whisper import Whisper


def of_bert(module: Bert) -> tuple[str, ...]:
    """Of BERT and RoBERTa."""
    # A buffer of old checkpoints, and the heads of pretraining.
    surplus = (r'embeddings\.position_ids', r'cls\..*', r'lm_head\..*')
    if module.outputs is None:
        surplus += (r'classifier\..*',)
    headed = module.outputs is not None and isinstance(module.config, RobertaConfig)
    if module.pooling != 'first' or headed:
        surplus += (r'pooler\..*',)
    return surplus


def of_vit(module: ViT) -> tuple[str, ...]:
    """Of ViT and DINOv2."""
    # Leftovers of pretraining.
    surplus = (r'pooler\..*', r'embeddings\.mask_token')
    return surplus + ((r'classifier\..*',) if module.outputs is None else ())


def of_llama(module: Decoder) -> tuple[str, ...]:
    """Of Llama, Gemma and their kin."""
    return (r'layers\.\d+\.self_attn\.rotary_emb\.inv_freq', *_head_of_words(module))


def of_gpt2(module: Decoder) -> tuple[str, ...]:
    """Of GPT-2."""
    # Old checkpoints keep each layer's causal mask.
    return (r'h\.\d+\.attn\.(bias|masked_bias)', *_head_of_words(module))


def _head_of_words(module: Decoder) -> tuple[str, ...]:
    # Some files of tied models repeat the embedding under this name.
    return (r'lm_head\.weight',) if module.config.tie_word_embeddings else ()


def of_t5(module: T5) -> tuple[str, ...]:
    """Of T5."""
    # The same embedding under other names.
    surplus = (r'(encoder|decoder)\.embed_tokens\.weight',)
    # If the config ties the head without scaling, a tensor of this name is not a copy but an error.
    tied = module.config.tie_word_embeddings and module.config.scale_decoder_outputs
    return surplus + ((r'lm_head\.weight',) if tied else ())


def of_whisper(module: Whisper) -> tuple[str, ...]:
    """Of Whisper."""
    del module
    return (r'proj_out\.weight',)  # a copy of the decoder's embedding
