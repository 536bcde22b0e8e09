"""The model families by the `model_type` of their config.json."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from jax.typing import DTypeLike

from peftjax.models.bert import BERT_NAMES, ROBERTA_NAMES, Bert
from peftjax.models.bert_config import (
    BertConfig,
    RobertaConfig,
    parse_bert,
    parse_roberta,
)
from peftjax.models.gpt2 import GPT2, GPT2_NAMES
from peftjax.models.gpt2_config import GPT2Config, parse_gpt2
from peftjax.models.llama import LLAMA_NAMES, Llama
from peftjax.models.llama_config import LlamaConfig, parse_llama
from peftjax.models.names import Rule
from peftjax.models.t5 import T5, T5_NAMES
from peftjax.models.t5_config import T5Config, parse_t5


class Build(NamedTuple):
    """How a user wants a family built: the arguments of `load` that reach the module."""

    task: str | None
    num_labels: int | None
    pooling: str
    scan: bool
    remat: str | None
    dtype: DTypeLike
    param_dtype: DTypeLike


class Family(NamedTuple):
    """A model family, as far as loading is concerned.

    config: of its models. parse: config.json -> such a config. build: config -> module.
    names: the tensor table.
    prefix: what full checkpoints put before the names of the backbone, and bare ones leave out.
    head: regex of leaves that are new when a checkpoint has none of them.
    surplus: module -> regexes of tensors that checkpoints hold and this module has no use for.
    tokens: names of the arguments that an example call gives tokens or a mask.
    """

    config: type
    parse: Callable[[Mapping[str, Any], Collection[str]], Any]
    build: Callable[[Any, Build], nn.Module]
    names: tuple[Rule, ...]
    prefix: str
    head: str
    surplus: Callable[[Any], tuple[str, ...]]
    tokens: tuple[str, ...] = ('input_ids', 'attention_mask')


def family_of(model_type: Any) -> Family:
    """The family that reads checkpoints of this model_type.

    Raises:
        ValueError: on a type without one, listing those there are.
    """
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ValueError(
            f'model_type {model_type!r} is not supported: only {", ".join(sorted(_FAMILIES))}'
        )
    return _FAMILIES[model_type]


def family_of_config(config: Any) -> Family:
    """The family that a model was built by, told by the type of its config.

    Raises:
        ValueError: a model that no family here built.
    """
    for family in _FAMILIES.values():
        if type(config) is family.config:
            return family
    raise ValueError(
        f'a model with a config of type {type(config).__name__} has no checkpoint names; files of '
        'adapters go with models of peftjax.load'
    )


def _build_bert(config: BertConfig, build: Build) -> Bert:
    if build.task not in (None, 'classification', 'regression'):
        raise ValueError(
            f"task {build.task!r} does not suit a BERT encoder: use None, 'classification' or "
            "'regression'"
        )
    if build.task == 'classification' and not build.num_labels:
        raise ValueError("task 'classification' needs num_labels, the number of classes")
    if build.task is None and build.num_labels is not None:
        raise ValueError("num_labels needs a task: use 'classification' or 'regression'")
    outputs = {None: None, 'classification': build.num_labels, 'regression': build.num_labels or 1}
    return Bert(
        config,
        outputs=outputs[build.task],
        pooling=build.pooling,
        scan=build.scan,
        remat=build.remat,
        dtype=build.dtype,
        param_dtype=build.param_dtype,
    )


def _build_llama(config: LlamaConfig, build: Build) -> Llama:
    _check_decoder('Llama', build)
    return Llama(
        config,
        scan=build.scan,
        remat=build.remat,
        dtype=build.dtype,
        param_dtype=build.param_dtype,
    )


def _build_gpt2(config: GPT2Config, build: Build) -> GPT2:
    _check_decoder('GPT-2', build)
    return GPT2(
        config,
        scan=build.scan,
        remat=build.remat,
        dtype=build.dtype,
        param_dtype=build.param_dtype,
    )


def _build_t5(config: T5Config, build: Build) -> T5:
    _check_decoder('T5', build, 'seq2seq_lm')
    return T5(
        config,
        scan=build.scan,
        remat=build.remat,
        dtype=build.dtype,
        param_dtype=build.param_dtype,
    )


def _check_decoder(family: str, build: Build, task: str = 'causal_lm') -> None:
    if build.pooling != 'first':
        raise ValueError(f'pooling {build.pooling!r} is for BERT: a {family} decoder does not pool')
    if build.task not in (None, task) or build.num_labels is not None:
        raise ValueError(
            f'task {build.task!r} with num_labels {build.num_labels} does not suit a {family} '
            f'decoder: use None or {task!r}, and no num_labels'
        )


def _bert_surplus(module: Bert) -> tuple[str, ...]:
    # The first is a buffer of old checkpoints, the second the heads of pretraining.
    surplus = (r'embeddings\.position_ids', r'cls\..*', r'lm_head\..*')
    if module.outputs is None:
        surplus += (r'classifier\..*',)
    headed = module.outputs is not None and isinstance(module.config, RobertaConfig)
    if module.pooling == 'mean' or headed:
        surplus += (r'pooler\..*',)
    return surplus


def _llama_surplus(module: Llama) -> tuple[str, ...]:
    surplus = (r'layers\.\d+\.self_attn\.rotary_emb\.inv_freq',)
    # Some files of tied models hold the embedding a second time under this name.
    return surplus + ((r'lm_head\.weight',) if module.config.tie_word_embeddings else ())


def _gpt2_surplus(module: GPT2) -> tuple[str, ...]:
    # Old checkpoints keep each layer's causal mask.
    surplus = (r'h\.\d+\.attn\.(bias|masked_bias)',)
    return surplus + ((r'lm_head\.weight',) if module.config.tie_word_embeddings else ())


def _t5_surplus(module: T5) -> tuple[str, ...]:
    # The one embedding under its other names.
    surplus = (r'(encoder|decoder)\.embed_tokens\.weight',)
    # A head of its own beside a config that ties it without scaling is no copy: it is an error.
    tied = module.config.tie_word_embeddings and module.config.scale_decoder_outputs
    return surplus + ((r'lm_head\.weight',) if tied else ())


_BERT = Family(
    BertConfig, parse_bert, _build_bert, BERT_NAMES, 'bert.', r'classifier/.*', _bert_surplus
)
_ROBERTA = Family(
    RobertaConfig,
    parse_roberta,
    _build_bert,
    ROBERTA_NAMES,
    'roberta.',
    r'classifier/.*',
    _bert_surplus,
)
_LLAMA = Family(LlamaConfig, parse_llama, _build_llama, LLAMA_NAMES, 'model.', r'', _llama_surplus)
_GPT2 = Family(GPT2Config, parse_gpt2, _build_gpt2, GPT2_NAMES, 'transformer.', r'', _gpt2_surplus)
_T5 = Family(
    T5Config,
    parse_t5,
    _build_t5,
    T5_NAMES,
    '',
    r'',
    _t5_surplus,
    (
        *('input_ids', 'attention_mask'),
        *('decoder_input_ids', 'decoder_attention_mask'),
    ),
)
_FAMILIES = {
    'bert': _BERT,
    'roberta': _ROBERTA,
    'xlm-roberta': _ROBERTA,
    'gpt2': _GPT2,
    'llama': _LLAMA,
    'mistral': _LLAMA,
    'qwen2': _LLAMA,
    'qwen3': _LLAMA,
    't5': _T5,
}
