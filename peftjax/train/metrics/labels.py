"""Metrics of classes, numbers and tags, by scikit-learn, SciPy and nervaluate."""

import math
from collections.abc import Callable, Sequence

import nervaluate
import numpy as np
import scipy.stats
import sklearn.metrics

from peftjax.train.task import Outputs

Compute = Callable[[Outputs], float]


def _classes(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    """The right classes and those of the logits, without rows whose target is below 0."""
    targets = np.asarray(outputs['targets'])
    found = np.asarray([int(np.argmax(logits)) for logits in outputs['logits']])
    return targets[targets >= 0], found[targets >= 0]


def f1(classes: Sequence[str]) -> Compute:
    """F1 of class 1, of two classes.

    Example:
        >>> outputs = {'targets': [np.int32(1), np.int32(0)], 'logits': [np.eye(2)[1]] * 2}
        >>> round(f1(())(outputs), 4)
        0.6667
    """
    del classes

    def compute(outputs: Outputs) -> float:
        return float(sklearn.metrics.f1_score(*_classes(outputs)))

    return compute


def f1_macro(classes: Sequence[str]) -> Compute:
    """The mean of the F1 of each class."""
    del classes

    def compute(outputs: Outputs) -> float:
        found = _classes(outputs)
        return float(sklearn.metrics.f1_score(*found, average='macro'))

    return compute


def matthews(classes: Sequence[str]) -> Compute:
    """Matthews' correlation of classes; 0 where all have the same class."""
    del classes
    return lambda outputs: float(sklearn.metrics.matthews_corrcoef(*_classes(outputs)))


def pearson(classes: Sequence[str]) -> Compute:
    """Pearson's correlation of numbers; 0 where all are the same."""
    del classes
    return lambda outputs: _correlation(scipy.stats.pearsonr, outputs)


def spearman(classes: Sequence[str]) -> Compute:
    """Spearman's correlation of the ranks of numbers; 0 where all are the same."""
    del classes
    return lambda outputs: _correlation(scipy.stats.spearmanr, outputs)


def _correlation(correlate: Callable[..., tuple[float, float]], outputs: Outputs) -> float:
    found = [np.asarray(outputs[name], np.float64) for name in ('targets', 'values')]
    if any(len(each) < 2 or np.ptp(each) == 0 for each in found):
        return 0.0
    value = float(correlate(*found)[0])
    return value if math.isfinite(value) else 0.0


def entity_f1(classes: Sequence[str]) -> Compute:
    """F1 of entities in BIO tags: an entity is right with its type and both of its ends.

    Example:
        >>> outputs = {'targets': [np.asarray([1, 2, -100])], 'tags': [np.asarray([1, 2, 0])]}
        >>> entity_f1(('O', 'B-PER', 'I-PER'))(outputs)
        1.0
    """

    def compute(outputs: Outputs) -> float:
        true, found = [], []
        for targets, tags in zip(outputs['targets'], outputs['tags'], strict=True):
            kept = targets >= 0
            true.append([classes[tag] for tag in targets[kept]])
            found.append([classes[tag] for tag in tags[kept]])
        kinds = sorted({name.partition('-')[2] for name in classes} - {''})
        scores = nervaluate.Evaluator(true, found, tags=kinds, loader='list').evaluate()
        return float(scores['overall']['strict'].f1)

    return compute
