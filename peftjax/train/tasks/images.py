"""Classes of images."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import peftjax
from peftjax.train.data.images import Images
from peftjax.train.data.tables import read_splits
from peftjax.train.metrics.registry import metrics_of
from peftjax.train.settings import Settings
from peftjax.train.task import Batch, Forward, Task, Totals
from peftjax.train.tasks import base
from peftjax.train.tasks.classify import class_answer, class_number


def images(settings: Settings, model: peftjax.Model) -> Task:
    """Columns image and label. An image is a path below the table's folder, or a file's bytes.

    A row: pixel_values float32 [3, size, size]; targets int32 []; weights float32 [].

    Options: size, of the square that the image is resized to (bicubic); mean and std, of each
    channel, after pixels were scaled to 0 … 1; label_smoothing; metrics: f1, f1_macro, matthews.
    """
    del model
    data = settings.data
    options = base.options_of(
        settings,
        size=224,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        label_smoothing=0.0,
        metrics=(),
    )
    columns = data.columns
    folder = Path() if data.source.startswith('hf:') else Path(data.source).parent
    size = options['size']
    mean, std = (np.asarray(options[name], np.float32)[:, None, None] for name in ('mean', 'std'))

    def read(image: Any) -> np.ndarray:
        return (_pixels(image, folder, size) - mean) / std

    def row(record: Mapping[str, Any]) -> dict[str, Any]:
        return {'pixel_values': read(record[columns['image']])}

    def logits(forward: Forward, batch: Batch) -> jax.Array:
        return forward({'pixel_values': batch['pixel_values']})

    def totals(forward: Forward, batch: Batch) -> Totals:
        return base.weighted_totals(logits(forward, batch), batch, options['label_smoothing'])

    def outputs(forward: Forward, batch: Batch) -> Mapping[str, jax.Array]:
        known = {name: batch[name] for name in ('targets',) if name in batch}
        return {'logits': logits(forward, batch).astype(jnp.float32), **known}

    splits = {}
    if data.source:
        number = class_number(settings)
        table = read_splits(data, (columns['image'], columns['label']))
        for name, rows in table.items():
            kept = base.limited(rows, data)
            pairs = [(r[columns['image']], number(r[columns['label']])) for r in kept]
            splits[name] = Images(pairs, read)
    return Task(
        splits=splits,
        totals=totals,
        outputs=outputs,
        metrics=metrics_of(options['metrics'], data.labels),
        best='-loss',
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        row=row,
        answer=class_answer(settings),
        classes=data.labels,
    )


def _pixels(image: Any, folder: Path, size: int) -> np.ndarray:
    """An image as a square of pixels from 0 to 1, float32 [3, size, size]."""
    name, content = image, image
    if isinstance(image, dict):
        name, content = image.get('path'), image.get('bytes')
        content = name if content is None else content
    if isinstance(content, bytes):
        content = io.BytesIO(content)
    elif isinstance(content, str):
        path = (folder / content).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f'image {content!r} lies outside {folder}')
        content = path
    else:
        raise ValueError(f'image {str(image)[:80]} is neither a path nor the bytes of a file')
    try:
        with Image.open(content) as file:
            square = file.convert('RGB').resize((size, size), Image.Resampling.BICUBIC)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f'image {str(name)[:80]!r} cannot be read: {error}') from None
    return np.asarray(square, np.float32).transpose(2, 0, 1) / 255.0
