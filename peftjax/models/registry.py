"""The model families by the `model_type` of their config.json."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models import surplus
from peftjax.models.bert_config import (
    BertConfig,
    RobertaConfig,
    parse_bert,
    parse_roberta,
)
from peftjax.models.bert_names import BERT_NAMES, ROBERTA_NAMES
from peftjax.models.build import (
    Build,
    build_bert,
    build_t5,
    build_vit,
    build_whisper,
    decoder_builder,
)
from peftjax.models.gemma import GEMMA_NAMES, Gemma, GemmaClassifier
from peftjax.models.gemma_config import GemmaConfig, parse_gemma
from peftjax.models.gpt2 import GPT2, GPT2_NAMES, GPT2Classifier
from peftjax.models.gpt2_config import GPT2Config, parse_gpt2
from peftjax.models.llama import LLAMA_NAMES, Llama, LlamaClassifier
from peftjax.models.llama_config import LlamaConfig, parse_llama
from peftjax.models.names import Rule
from peftjax.models.t5_config import T5Config, parse_t5
from peftjax.models.t5_names import T5_NAMES
from peftjax.models.vit import DINOV2_MODULES, DINOV2_NAMES, VIT_MODULES, VIT_NAMES
from peftjax.models.vit_config import Dinov2Config, ViTConfig, parse_vit
from peftjax.models.whisper_config import WhisperConfig, parse_whisper
from peftjax.models.whisper_names import WHISPER_NAMES

Inputs = dict[str, jax.ShapeDtypeStruct]


def _tokens(config: Any) -> Inputs:
    return dict.fromkeys(('input_ids', 'attention_mask'), _ids(config))


def _tokens_of_two(config: Any) -> Inputs:
    both = ('input_ids', 'attention_mask', 'decoder_input_ids', 'decoder_attention_mask')
    return dict.fromkeys(both, _ids(config))


def _ids(config: Any) -> jax.ShapeDtypeStruct:
    length = min(8, getattr(config, 'max_position_embeddings', 8))
    return jax.ShapeDtypeStruct((2, length), jnp.int32)


def _pixels(config: ViTConfig) -> Inputs:
    side = config.image_size // config.patch_size * config.patch_size
    shape = (2, config.num_channels, side, side)
    return {'pixel_values': jax.ShapeDtypeStruct(shape, jnp.float32)}


def _speech(config: WhisperConfig) -> Inputs:
    shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
    ids = jax.ShapeDtypeStruct((2, min(8, config.max_target_positions)), jnp.int32)
    return {
        'input_features': jax.ShapeDtypeStruct(shape, jnp.float32),
        **dict.fromkeys(('decoder_input_ids', 'decoder_attention_mask'), ids),
    }


class Family(NamedTuple):
    """The facts about a model family that loading needs.

    config: class of the models' configs. parse: config.json -> config. build: config -> module.
    names: the table of tensors.
    prefix: of the backbone's tensor names in full checkpoints; bare checkpoints leave it out.
    heads: names of the modules for tasks on the backbone, the same in checkpoints and in our trees;
        their leaves are new if a checkpoint has none of them.
    writes: whether the model without a head for a task gives logits of tokens.
    vocabulary: paths of leaves whose tensors have a row for each token.
    marks_tokens: leaves that a head on each token has, and leaves that it lacks; they tell it from
        a head on the text.
    surplus: module -> regexes of the tensors in checkpoints that this module does not use.
    example: config -> the arguments of a call.
    modules: pairs of a regex and its replacement, which turn a tensor's name in a checkpoint into
        its name in transformers' own model if the two differ. Files of adapters use the latter.
    """

    config: type
    parse: Callable[[Mapping[str, Any], Collection[str]], Any]
    build: Callable[[Any, Build], nn.Module]
    names: tuple[Rule, ...]
    prefix: str
    heads: tuple[str, ...]
    writes: bool
    surplus: Callable[[Any], tuple[str, ...]]
    example: Callable[[Any], Inputs] = _tokens
    vocabulary: tuple[str, ...] = ()
    marks_tokens: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    modules: tuple[tuple[str, str], ...] = ()

    def of_head(self, path: str) -> bool:
        """Whether a leaf belongs to the head of a task."""
        return path.partition('/')[0] in self.heads

    def reads_tokens(self, leaves: Collection[str]) -> bool:
        """Whether a model with these leaves has a head on each token."""
        some, none = self.marks_tokens
        return any(leaf in leaves for leaf in some) and not any(leaf in leaves for leaf in none)


def family_of(model_type: Any) -> Family:
    """The family that reads checkpoints of this model_type.

    Raises:
        ValueError: the type is unknown; the message lists the known ones.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f'model_type {model_type!r} is not supported: only {", ".join(sorted(FAMILIES))}'
        )
    return FAMILIES[model_type]


def family_of_config(config: Any) -> Family:
    """The family of a model, by the type of its config.

    Raises:
        ValueError: the model is of no family here.
    """
    for family in FAMILIES.values():
        if type(config) is family.config:
            return family
    raise ValueError(
        f'a model with a config of type {type(config).__name__} has no checkpoint names, and files '
        'of adapters need a model of peftjax.load; write peftjax.save(folder, model, tx, adapter, '
        'frozen), which works for any model'
    )


_BERT = Family(
    BertConfig,
    parse_bert,
    build_bert,
    BERT_NAMES,
    prefix='bert.',
    heads=('classifier',),
    writes=False,
    surplus=surplus.of_bert,
    vocabulary=('embeddings/word_embeddings/embedding',),
    marks_tokens=(('classifier/kernel',), ('pooler/kernel',)),
)
_ROBERTA = _BERT._replace(
    config=RobertaConfig, parse=parse_roberta, names=ROBERTA_NAMES, prefix='roberta.'
)
_LLAMA = Family(
    LlamaConfig,
    parse_llama,
    decoder_builder('Llama', Llama, LlamaClassifier),
    LLAMA_NAMES,
    prefix='model.',
    heads=('score',),
    writes=True,
    surplus=surplus.of_llama,
    vocabulary=('embed_tokens/embedding', 'lm_head/kernel'),
    marks_tokens=(('score/bias',), ()),
)
_GEMMA = _LLAMA._replace(
    config=GemmaConfig,
    parse=parse_gemma,
    build=decoder_builder('Gemma', Gemma, GemmaClassifier),
    names=GEMMA_NAMES,
)
_GPT2 = Family(
    GPT2Config,
    parse_gpt2,
    decoder_builder('GPT-2', GPT2, GPT2Classifier),
    GPT2_NAMES,
    prefix='transformer.',
    heads=('score', 'classifier'),
    writes=True,
    surplus=surplus.of_gpt2,
    vocabulary=('wte/embedding', 'lm_head/kernel'),
    marks_tokens=(('classifier/kernel',), ()),
)
_T5 = Family(
    T5Config,
    parse_t5,
    build_t5,
    T5_NAMES,
    prefix='',
    heads=(),
    writes=True,
    surplus=surplus.of_t5,
    vocabulary=('embed/embedding', 'lm_head/kernel'),
    example=_tokens_of_two,
)
_VIT = Family(
    ViTConfig,
    parse_vit,
    build_vit,
    VIT_NAMES,
    prefix='vit.',
    heads=('classifier',),
    writes=False,
    surplus=surplus.of_vit,
    example=_pixels,
    modules=VIT_MODULES,
)
_DINOV2 = _VIT._replace(
    config=Dinov2Config, names=DINOV2_NAMES, prefix='dinov2.', modules=DINOV2_MODULES
)
_WHISPER = Family(
    WhisperConfig,
    parse_whisper,
    build_whisper,
    WHISPER_NAMES,
    prefix='model.',
    heads=(),
    writes=True,
    surplus=surplus.of_whisper,
    vocabulary=('decoder/embed_tokens/embedding',),
    example=_speech,
)
FAMILIES = {
    'bert': _BERT,
    'roberta': _ROBERTA,
    'xlm-roberta': _ROBERTA,
    'gemma2': _GEMMA,
    'gemma3_text': _GEMMA,
    'gpt2': _GPT2,
    'llama': _LLAMA,
    'mistral': _LLAMA,
    'qwen2': _LLAMA,
    'qwen3': _LLAMA,
    't5': _T5,
    'vit': _VIT,
    'dinov2': _DINOV2,
    'whisper': _WHISPER,
}
