"""The networks and images of Li et al.: a fully connected net and a LeNet on Fashion-MNIST."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from experiments.studies.intrinsic.fitting import Split

SIDE = 28  # pixels


class FullyConnected(nn.Module):
    """Three layers of `width`, `width` and 10 units, with He's initial weights."""

    width: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        start = nn.initializers.he_normal()
        x = image.reshape(len(image), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width, kernel_init=start)(x))
        return nn.Dense(10, kernel_init=start)(x)


class LeNet(nn.Module):
    """Two convolutions of 6 and 16 filters of 5 x 5 with maximum pooling; 120, 84 and 10 units.

    Convolutions are written as dense layers on patches, and pooling as a maximum over an axis: both
    compile to faster programs on CPUs.
    """

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        start = nn.initializers.he_normal()
        x = image[..., None]
        for filters in (6, 16):
            x = nn.relu(nn.Dense(filters, kernel_init=start)(_patches(x, 5)))
            side = x.shape[1] // 2
            x = x.reshape(len(x), side, 2, side, 2, filters).max((2, 4))  # of each 2 x 2 square
        x = x.reshape(len(x), -1)
        for width in (120, 84):
            x = nn.relu(nn.Dense(width, kernel_init=start)(x))
        return nn.Dense(10, kernel_init=start)(x)


def _patches(x: jax.Array, size: int) -> jax.Array:
    """All patches of `size` x `size` pixels: `[n, a, a, c]` to `[n, b, b, size * size * c]`."""
    rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
    parts = [x[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    return jnp.concatenate(parts, axis=-1)


def network(name: str, seed: int) -> peftjax.Model:
    """A net with random weights: 'lenet', or for example 'fc200', fully connected of width 200.

    Example:
        >>> sum(leaf.size for leaf in jax.tree.leaves(network('fc200', 0).params))
        199210
    """
    module = LeNet() if name == 'lenet' else FullyConnected(int(name.removeprefix('fc')))
    image = np.zeros((2, SIDE, SIDE), np.float32)
    variables: Any = module.init(jax.random.key(seed), image)
    return peftjax.wrap(module, variables, {'image': image})


def read_images(folder: Path, train: int, validation: int, test: int) -> dict[str, Split]:
    """Images of Fashion-MNIST: the first of both parts; to validate, the last of the training part.

    Args:
        folder: with the four files of the data set.
        train, validation, test: the number of images in each split.
    """
    images, labels = (_idx(folder / f'train-{kind}.gz') for kind in _FILES)
    tests = [_idx(folder / f't10k-{kind}.gz') for kind in _FILES]
    places = {
        'train': (images[:train], labels[:train]),
        'validation': (images[-validation:], labels[-validation:]),
        'test': (tests[0][:test], tests[1][:test]),
    }
    return {
        name: Split({'image': x.astype(np.float32) / 255}, y.astype(np.int32))
        for name, (x, y) in places.items()
    }


_FILES = ('images-idx3-ubyte', 'labels-idx1-ubyte')


def _idx(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, '>i4', data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def shuffled_pixels(splits: Mapping[str, Split], seed: int) -> dict[str, Split]:
    """The same images with their pixels in another order, the same for all images."""
    order = np.random.default_rng(seed).permutation(SIDE * SIDE)

    def shuffle(split: Split) -> Split:
        image = split.inputs['image'].reshape(-1, SIDE * SIDE)[:, order]
        return split._replace(inputs={'image': image.reshape(-1, SIDE, SIDE)})

    return {name: shuffle(split) for name, split in splits.items()}


def shuffled_labels(splits: Mapping[str, Split], seed: int) -> dict[str, Split]:
    """The same images with the labels of each split permuted at random."""
    rng = np.random.default_rng(seed)
    return {
        name: split._replace(labels=rng.permutation(split.labels)) for name, split in splits.items()
    }
