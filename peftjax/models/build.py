"""How each family is built: from its config and the arguments of `load` to a module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
from jax.typing import DTypeLike

from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig
from peftjax.models.decoder import Classifier, LanguageModel
from peftjax.models.t5 import T5
from peftjax.models.t5_config import T5Config
from peftjax.models.vit import ViT
from peftjax.models.vit_config import ViTConfig
from peftjax.models.whisper import Whisper
from peftjax.models.whisper_config import WhisperConfig


class Build(NamedTuple):
    """How a user wants a family built: the arguments of `load` that reach the module."""

    task: str | None
    num_labels: int | None
    pooling: str
    scan: bool
    remat: str | None
    dtype: DTypeLike
    param_dtype: DTypeLike

    def common(self) -> dict[str, Any]:
        """The arguments that the modules of all families share."""
        return {name: getattr(self, name) for name in ('scan', 'remat', 'dtype', 'param_dtype')}


def build_bert(config: BertConfig, build: Build) -> Bert:
    tasks = ('classification', 'regression', 'token_classification')
    outputs = _outputs('a BERT encoder', build, tasks)
    pooling = build.pooling
    if build.task == 'token_classification':
        if pooling != 'first':
            raise ValueError(
                f'pooling {pooling!r} is for a head on the sentence: leave it out for '
                "task 'token_classification'"
            )
        pooling = 'none'
    elif pooling == 'none' and outputs is not None:
        raise ValueError(
            f"pooling 'none' gives task {build.task!r} no state of the sentence; use 'first' or "
            "'mean', or task 'token_classification'"
        )
    return Bert(config, outputs=outputs, pooling=pooling, **build.common())


def build_vit(config: ViTConfig, build: Build) -> ViT:
    outputs = _outputs('an image encoder', build, ('classification', 'regression'))
    if build.pooling != 'first':
        raise ValueError(
            f'pooling {build.pooling!r} is for BERT: leave it out for an image encoder'
        )
    return ViT(config, outputs=outputs, **build.common())


def decoder_builder(
    kind: str, writer: type[LanguageModel], classifier: type[Classifier]
) -> Callable[[Any, Build], nn.Module]:
    """A builder of decoders: of `writer` for language modelling, of `classifier` for a head."""

    def build_decoder(config: Any, build: Build) -> nn.Module:
        if build.pooling != 'first':
            raise ValueError(
                f'pooling {build.pooling!r} is for BERT: leave it out for a {kind} decoder, whose '
                'head reads the last token'
            )
        if build.task in (None, 'causal_lm'):
            _check_writer(kind, build, 'causal_lm')
            return writer(config, **build.common())
        tasks = ('causal_lm', 'classification', 'regression', 'token_classification')
        return classifier(
            config,
            outputs=_outputs(f'a {kind} decoder', build, tasks) or 1,
            each_token=build.task == 'token_classification',
            **build.common(),
        )

    return build_decoder


def build_t5(config: T5Config, build: Build) -> T5:
    _check_writer('T5', build, 'seq2seq_lm')
    return T5(config, **build.common())


def build_whisper(config: WhisperConfig, build: Build) -> Whisper:
    _check_writer('Whisper', build, 'seq2seq_lm')
    return Whisper(config, **build.common())


def _outputs(kind: str, build: Build, tasks: tuple[str, ...]) -> int | None:
    """How many numbers the head gives, None without a head."""
    if build.task is None:
        if build.num_labels is not None:
            raise ValueError(f'num_labels needs a task: use one of {", ".join(map(repr, tasks))}')
        return None
    if build.task not in tasks:
        raise ValueError(
            f'task {build.task!r} does not suit {kind}: use None or one of '
            f'{", ".join(map(repr, tasks))}'
        )
    if build.task == 'regression':
        return build.num_labels or 1
    if not build.num_labels:
        raise ValueError(f'task {build.task!r} needs num_labels, the number of classes')
    return build.num_labels


def _check_writer(family: str, build: Build, task: str) -> None:
    if build.pooling != 'first':
        raise ValueError(
            f'pooling {build.pooling!r} is for BERT: leave it out for a {family} decoder'
        )
    if build.task not in (None, task) or build.num_labels is not None:
        raise ValueError(
            f'task {build.task!r} with num_labels {build.num_labels} does not suit a {family} '
            f'decoder: use None or {task!r}, and no num_labels'
        )
