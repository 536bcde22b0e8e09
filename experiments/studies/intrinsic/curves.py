"""Curves of accuracy over dimension, from the rows of a study."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from experiments.studies.claims import interval
from experiments.studies.intrinsic.line import LINE, Needed, needed
from experiments.studies.results import Row

Key = tuple[str, str, str]


class Curves:
    """The final accuracies of a study.

    Args:
        rows: of its results.
        fields: the three fields of a row whose values are the key of a curve.
        whole: from the key of a curve to the key of the runs that train all weights.
        score: from a key to the name of the accuracy to use.

    Raises:
        ValueError: a curve has runs of several rates, as where a longer grid gave another best one.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        fields: tuple[str, str, str],
        whole: Callable[[Key], Key],
        score: Callable[[Key], str],
    ):
        self._rows: dict[Key, list[Row]] = {}
        for row in rows:
            if row['stage'] == 'final':
                one, two, three = (row[field] for field in fields)
                self._rows.setdefault((one, two, three), []).append(row)
        for key, each in self._rows.items():
            rates = sorted({row['rate'] for row in each})
            if len(rates) > 1:
                raise ValueError(
                    f'the final runs of {", ".join(key)} have the rates {rates}: delete the rows '
                    'of all but the chosen one'
                )
        self._whole, self._score = whole, score

    @property
    def keys(self) -> list[Key]:
        """The curves, in the order in which they were measured."""
        return [key for key in self._rows if key != self._whole(key)]

    def accuracies(self, key: Key) -> dict[int, list[float]]:
        """The accuracies of a curve by dimension, one for each seed, in the order of seeds."""
        found: dict[int, dict[int, float]] = {}
        for row in self._rows[key]:
            found.setdefault(row['dimension'], {})[row['seed']] = row[self._score(key)]
        return {d: [each[seed] for seed in sorted(each)] for d, each in sorted(found.items())}

    def whole(self, key: Key) -> list[float]:
        """The accuracies with all weights, one for each seed."""
        return self.accuracies(self._whole(key))[0]

    def weights(self, key: Key) -> int:
        """The number of trained values in the runs that train all weights."""
        return self._rows[self._whole(key)][0]['trained']

    def needed(self, key: Key, line: Key | None = None) -> Needed:
        """d90 of each seed.

        Args:
            key: of the curve.
            line: the curve whose accuracy with all weights sets the line; None for `key`.
        """
        return needed(self.accuracies(key), self.whole(key if line is None else line))

    def rate(self, key: Key) -> float:
        """The rate of a curve's runs."""
        return self._rows[key][0]['rate']

    def means(self, key: Key) -> str:
        """The mean accuracy at each dimension, as text."""
        return ', '.join(f'{d}: {np.mean(each):.3f}' for d, each in self.accuracies(key).items())

    def draw(self, axes: Axes, key: Key, label: str, colour: str) -> None:
        """Draws means and intervals of a curve, and its line at 90 %."""
        found = {d: interval(each) for d, each in self.accuracies(key).items()}
        means = [each.mean for each in found.values()]
        errors = [each.high - each.mean if each.seeds > 1 else 0.0 for each in found.values()]
        style = {'marker': 'o', 'ms': 4, 'capsize': 2, 'color': colour}
        axes.errorbar(list(found), means, errors, label=label, **style)
        axes.axhline(LINE * float(np.mean(self.whole(key))), color=colour, ls='--', lw=0.8)


def finish(axes: Axes, title: str) -> None:
    """The labels of a panel of curves."""
    axes.set_xscale('log')
    axes.set(xlabel='dimensions that train', ylabel='accuracy', title=title)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def at_the_edge(curves: Curves, rates: Sequence[float]) -> str:
    """How many curves have the least or the greatest rate of the grid, as a sentence."""
    edges = [
        curves.rate(key) for key in curves.keys if curves.rate(key) in (min(rates), max(rates))
    ]
    return (
        f'The rate of {len(edges)} of {len(curves.keys)} curves is the least or the greatest of '
        f'the '
        f'grid ({", ".join(f"{rate:g}" for rate in rates)}), so a better one may lie beyond it.'
    )
