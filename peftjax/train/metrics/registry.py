"""Metrics by name, and the scores of which less is better."""

from collections.abc import Callable, Mapping, Sequence

from peftjax.train.dotted import find_function
from peftjax.train.metrics import labels, texts
from peftjax.train.task import Metric, Outputs

MetricFactory = Callable[[Sequence[str]], Callable[[Outputs], float]]
"""A function from the names of the classes to a function of the outputs of a split."""

METRICS: Mapping[str, MetricFactory] = {
    'accuracy': labels.accuracy,
    'f1': labels.f1,
    'f1_macro': labels.f1_macro,
    'matthews': labels.matthews,
    'pearson': labels.pearson,
    'spearman': labels.spearman,
    'rmse': labels.rmse,
    'entity_f1': labels.entity_f1,
    'perplexity': texts.perplexity,
}

LESS_IS_BETTER = frozenset({'loss', 'perplexity', 'mse', 'mae', 'rmse', 'wer', 'cer', 'ter'})


def metrics_of(names: Sequence[str], classes: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The metrics of these names; 'package.module:function' is one of your own.

    A function of your own takes the names of the classes, and gives a function from the outputs of
    a split to a number.

    Raises:
        SettingsError: no such metric; the message has near names.

    Example:
        >>> [metric.name for metric in metrics_of(['f1', 'matthews'])]
        ['f1', 'matthews']
    """
    return tuple(Metric(name.rpartition(':')[2], _find(name)(classes)) for name in names)


def better(name: str) -> str:
    """A score as `Task.best` takes it: with a minus sign in front if less of it is better.

    Example:
        >>> better('perplexity'), better('f1'), better('-mine')
        ('-perplexity', 'f1', '-mine')
    """
    return f'-{name}' if name in LESS_IS_BETTER else name


def _find(name: str) -> MetricFactory:
    return METRICS[name] if name in METRICS else find_function('metric', name, METRICS)
