"""The models, methods, losses and steps that the benchmarks share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import peftjax
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig
from peftjax.models.llama import Llama
from peftjax.models.llama_config import LlamaConfig
from peftjax.train import init_state, make_train_step

# The shapes of two real checkpoints, and small ones of the same families for tests.
SIZES: dict[str, dict[str, Any]] = {
    'llama': {
        'real': LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            head_dim=64,
            tie_word_embeddings=True,
        ),
        'tiny': LlamaConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=True,
        ),
    },
    'bert': {
        'real': BertConfig(
            vocab_size=30522,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
        ),
        'tiny': BertConfig(
            vocab_size=256,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
        ),
    },
}
BATCHES = {
    'llama': {'real': (4, 128), 'tiny': (2, 16)},
    'bert': {'real': (16, 128), 'tiny': (4, 16)},
}
TITLES = {
    ('llama', 'real'): 'SmolLM2-135M shape, causal language model',
    ('bert', 'real'): 'MiniLM shape, 2-class head',
    ('llama', 'tiny'): 'tiny Llama',
    ('bert', 'tiny'): 'tiny BERT, 2-class head',
}


class Method(NamedTuple):
    """A row of the tables.

    `two_routes` is false for methods that cannot merge, and for methods that replace leaves of the
    base, whose two routes are the same program.
    """

    transform: peftjax.PeftTransform
    two_routes: bool = True


class Workload(NamedTuple):
    """One model on one batch shape, all abstract.

    Attributes:
        title: of the table.
        module: the Flax module, for random parameters.
        model: its abstract `peftjax.Model`.
        batch: `{'inputs': keyword arguments of the model, 'labels': int32 [B]}`; without labels if
            they follow from the inputs.
        loss: `loss(logits, batch) -> scalar`.
        methods: `{name: Method}`.
        layers: the number of layers.
    """

    title: str
    module: Any
    model: peftjax.Model
    batch: dict[str, Any]
    loss: Callable[[jax.Array, Any], jax.Array]
    methods: dict[str, Method]
    layers: int


def workload(family: str, size: str, *, scan: bool, layers: int | None = None) -> Workload:
    """The workload `family` ('llama' or 'bert') at `size` ('real' or 'tiny').

    layers: None for the checkpoint's own number.
    """
    config = SIZES[family][size]
    config = config.__class__(
        **vars(config) | {'num_hidden_layers': layers or config.num_hidden_layers}
    )
    shape = BATCHES[family][size]
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    title = (
        f'{TITLES[family, size]}, {config.num_hidden_layers} layers, batch {shape[0]} x {shape[1]}'
    )
    if family == 'llama':
        module, batch = Llama(config, scan=scan), {'inputs': {'input_ids': ids}}
        loss, methods = next_token_loss, llama_methods()
    else:
        module = Bert(config, outputs=2, scan=scan)
        batch = {
            'inputs': {'input_ids': ids, 'attention_mask': ids},
            'labels': jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        }
        loss, methods = class_loss, bert_methods()
    variables = jax.eval_shape(
        lambda key: module.init(key, **zeros(batch['inputs'])), jax.random.key(0)
    )
    model = peftjax.wrap(module, variables, batch['inputs'])
    return Workload(title, module, model, batch, loss, methods, config.num_hidden_layers)


def zeros(tree: Any) -> Any:
    """Arrays of zeros of the shapes and dtypes in `tree`."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def llama_methods() -> dict[str, Method]:
    """The methods on a decoder. It has no biases, so norms train instead of BitFit's biases."""
    attention, every = r'layers.*/(q_proj|v_proj)', r'layers.*/\w+_proj'
    outputs = r'layers\w*/(self_attn/o_proj|mlp/down_proj)'
    return {
        'full': Method(peftjax.full(), two_routes=False),
        'select, norms': Method(peftjax.select(r'.*/scale'), two_routes=False),
        'LoRA r=8, q v': Method(peftjax.lora(rank=8, targets=attention)),
        'LoRA r=8, all-linear': Method(peftjax.lora(rank=8, targets=every)),
        'LoRA r=8, q v and tied embedding': Method(
            peftjax.lora(rank=8, targets=(attention, 'embed_tokens'))
        ),
        'bottleneck 64': Method(peftjax.bottleneck(size=64, targets=outputs), two_routes=False),
    }


def bert_methods() -> dict[str, Method]:
    """The methods on an encoder, each together with a new head that trains too."""
    attention = r'layers.*/(query|value)'
    every = r'layers.*/(query|key|value|output|intermediate)'
    outputs = r'layers\w*/(attention|ffn)/output'

    def with_head(transform: peftjax.PeftTransform) -> peftjax.PeftTransform:
        return peftjax.chain(transform, peftjax.select(r'classifier/.*'))

    return {
        'full': Method(peftjax.full(), two_routes=False),
        'select, biases (BitFit)': Method(
            peftjax.select((r'.*/bias', r'classifier/kernel')), two_routes=False
        ),
        'LoRA r=8, q v': Method(with_head(peftjax.lora(rank=8, targets=attention))),
        'LoRA r=8, all-linear': Method(with_head(peftjax.lora(rank=8, targets=every))),
        'LoRA r=8, q v and word embedding': Method(
            with_head(peftjax.lora(rank=8, targets=(attention, r'embeddings/word_embeddings')))
        ),
        'bottleneck 64': Method(
            with_head(peftjax.bottleneck(size=64, targets=outputs)), two_routes=False
        ),
    }


def next_token_loss(logits: jax.Array, batch: Any) -> jax.Array:
    """Mean cross entropy of each next token: logits [B, T, V].

    The last position has no next token and gets weight zero. Slicing it off would copy the logits
    and pad their gradient.
    """
    ids = batch['inputs']['input_ids']
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.roll(ids, -1, axis=1))
    counted = jnp.arange(ids.shape[1]) < ids.shape[1] - 1
    return jnp.where(counted[None], losses, 0.0).sum() / (ids.shape[0] * (ids.shape[1] - 1))


def class_loss(logits: jax.Array, batch: Any) -> jax.Array:
    """Mean cross entropy of the labels: logits [B, classes]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch['labels']).mean()


class Program(NamedTuple):
    """A step ready for `jax.jit(function, donate_argnums=0)(state, frozen, batch)`."""

    function: Callable[..., Any]
    optimizer: optax.GradientTransformation
    state: Any
    frozen: Any
    batch: Any


def program(work: Workload, transform: peftjax.PeftTransform, route: str) -> Program:
    """One whole training step: loss, gradient, its norm for the log, clipping, AdamW.

    route: 'rules' computes with the adapter's factors, 'merged' with merged weights.
    """
    predict = predictor(work.model, transform, route)

    def loss(adapter: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:
        del key
        return work.loss(predict(adapter, frozen, **batch['inputs']), batch), {}

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    key = jax.random.key(0)
    adapter, frozen = jax.eval_shape(transform.init, key, work.model)
    state = jax.eval_shape(lambda tree: init_state(tree, optimizer, key), adapter)
    return Program(make_train_step(loss, optimizer), optimizer, state, frozen, work.batch)


def predictor(
    model: peftjax.Model, transform: peftjax.PeftTransform, route: str
) -> Callable[..., Any]:
    """`predict(adapter, frozen, **inputs)` by one of the two routes."""
    if route == 'rules':
        return peftjax.adapt(model, transform)
    if route != 'merged':
        raise ValueError(f"route {route!r} is unknown: use 'rules' or 'merged'")
    return lambda adapter, frozen, **inputs: model.apply(transform.merge(adapter, frozen), **inputs)
