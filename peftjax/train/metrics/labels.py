"""Metrics of classes, numbers and tags, by scikit-learn, SciPy and nervaluate."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import nervaluate
import numpy as np
import scipy.stats
import sklearn.metrics

from peftjax.train.settings import SettingsError
from peftjax.train.task import Outputs

Compute = Callable[[Outputs], float]
_ZERO: Any = 0.0  # the F1 of a class that no row has; the type stubs allow only texts


def in_bio_form(classes: Sequence[str]) -> bool:
    """Whether tags name entities: 'B-…' and 'I-…' of each kind, and 'O' elsewhere.

    Example:
        >>> in_bio_form(('O', 'B-PER', 'I-PER')), in_bio_form(('NOUN', 'VERB'))
        (True, False)
    """
    kinds = [name for name in classes if name != 'O']
    return bool(kinds) and all(name[:2] in ('B-', 'I-') and name[2:] for name in kinds)


def _classes(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    """The right classes and those of the logits, without rows whose target is below 0."""
    targets = np.asarray(outputs['targets'])
    found = np.asarray([int(np.argmax(logits)) for logits in outputs['logits']])
    return targets[targets >= 0], found[targets >= 0]


def accuracy(classes: Sequence[str]) -> Compute:
    """The share of right classes.

    Example:
        >>> outputs = {'targets': [np.int32(1), np.int32(-100)], 'logits': [np.eye(2)[1]] * 2}
        >>> accuracy(())(outputs)
        1.0
    """
    del classes
    return lambda outputs: float(sklearn.metrics.accuracy_score(*_classes(outputs)))


def f1(classes: Sequence[str]) -> Compute:
    """F1 of class 1, for two classes.

    Raises:
        SettingsError: there are more classes; the call raises it if they have no names.

    Example:
        >>> outputs = {'targets': [np.int32(1), np.int32(0)], 'logits': [np.eye(2)[1]] * 2}
        >>> round(f1(())(outputs), 4)
        0.6667
    """
    _check_two(len(classes) or 2)

    def compute(outputs: Outputs) -> float:
        _check_two(max((len(logits) for logits in outputs['logits']), default=2))
        found = _classes(outputs)
        return float(sklearn.metrics.f1_score(*found, labels=[0, 1], zero_division=_ZERO))

    return compute


def f1_macro(classes: Sequence[str]) -> Compute:
    """The mean of the F1 of each class."""
    del classes

    def compute(outputs: Outputs) -> float:
        found = _classes(outputs)
        return float(sklearn.metrics.f1_score(*found, average='macro', zero_division=_ZERO))

    return compute


def matthews(classes: Sequence[str]) -> Compute:
    """Matthews' correlation of classes; 0 if all targets, or all answers, are one class."""
    del classes

    def compute(outputs: Outputs) -> float:
        true, found = _classes(outputs)
        if any(len(np.unique(each)) < 2 for each in (true, found)):
            return 0.0
        return float(sklearn.metrics.matthews_corrcoef(true, found))

    return compute


def rmse(classes: Sequence[str]) -> Compute:
    """The square root of the mean squared error of numbers."""
    del classes

    def compute(outputs: Outputs) -> float:
        found = (np.asarray(outputs[name], np.float64) for name in ('targets', 'values'))
        return float(sklearn.metrics.root_mean_squared_error(*found))

    return compute


def pearson(classes: Sequence[str]) -> Compute:
    """Pearson's correlation of numbers; 0 if all targets, or all answers, are equal."""
    del classes
    return lambda outputs: _correlation(scipy.stats.pearsonr, outputs)


def spearman(classes: Sequence[str]) -> Compute:
    """Spearman's correlation of numbers; 0 if all targets, or all answers, are equal."""
    del classes
    return lambda outputs: _correlation(scipy.stats.spearmanr, outputs)


def _correlation(correlate: Callable[..., tuple[float, float]], outputs: Outputs) -> float:
    found = [np.asarray(outputs[name], np.float64) for name in ('targets', 'values')]
    if any(len(each) < 2 or np.ptp(each) == 0 for each in found):
        return 0.0
    value = float(correlate(*found)[0])
    return value if math.isfinite(value) else 0.0


def entity_f1(classes: Sequence[str]) -> Compute:
    """F1 of entities in BIO tags: an entity is right if its type and both of its ends are.

    Example:
        >>> outputs = {'targets': [np.asarray([1, 2, -100])], 'tags': [np.asarray([1, 2, 0])]}
        >>> entity_f1(('O', 'B-PER', 'I-PER'))(outputs)
        1.0

    Raises:
        SettingsError: the tags name no entities.
    """
    if not in_bio_form(classes):
        raise SettingsError(
            f'entity_f1 needs tags such as O, B-PER, I-PER, and these are {", ".join(classes)}; '
            'name them in data.labels, or write data.options.metrics without entity_f1'
        )

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


def _check_two(count: int) -> None:
    if count > 2:
        raise SettingsError(
            f'the metric f1 is for two classes, and there are {count}; write f1_macro'
        )
