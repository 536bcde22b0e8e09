"""How few dimensions train a network on images? The protocol of Li et al., shortened.

    peftjax reproduce study.intrinsic_images --workdir runs/intrinsic_images

Source: Li et al., Measuring the Intrinsic Dimension of Objective Landscapes, 2018
    (arXiv:1804.08838), sections 2 and 3.
Data: Fashion-MNIST (Xiao et al. 2017, MIT licence), as the Debian package
    `dataset-fashion-mnist` installs it; 2,000 images of the training part are used to validate.
Differs: Fashion-MNIST instead of MNIST; 1,000 steps (LeNet 600) of 128 images instead of 100
    epochs; no weight decay; the rows of the projections have length 1 instead of the columns, so
    that one rate suits all dimensions. The rate of each curve is tuned on validation images, at one
    dimension with seed 0, from one grid.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import peftjax
from experiments.studies.intrinsic import nets
from experiments.studies.intrinsic.fitting import Fitter, Run
from experiments.studies.results import Results, Row

_STEPS_OF_LENET = 0.6  # as a share of the steps of the other nets


Projection = Literal['fastfood', 'dense', 'sparse', 'none']


class Curve(NamedTuple):
    """Accuracy over dimension.

    Attributes:
        net: 'lenet', or for example 'fc200', fully connected of width 200.
        projection: of `peftjax.intrinsic`; 'none' trains all weights.
        data: 'true'; 'pixels' for shuffled pixels; 'few' for few images; 'labels' for the few
            images with shuffled labels.
        dimensions: to train in.
    """

    net: str
    projection: Projection
    data: str
    dimensions: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings that determine the results.

    Attributes:
        images: the folder of the data set.
        train, validation, test, few: the number of images in each split, and in the few images.
        steps, batch_size: of each run.
        seeds: the number of runs. A seed draws weights, projection and order.
        rates: the grid.
        tuned_at: the dimension where the rate is tuned.
        curves: to measure. All weights are trained too, for each net and data.
    """

    images: str = '/usr/share/datasets/fashion-mnist'
    train: int = 58_000
    validation: int = 2000
    test: int = 10_000
    few: int = 1000
    steps: int = 1000
    batch_size: int = 128
    seeds: int = 5
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    tuned_at: int = 300
    curves: tuple[Curve, ...] = (
        Curve('fc200', 'fastfood', 'true', (10, 30, 100, 200, 300, 500, 750, 1000, 2000)),
        Curve('fc100', 'fastfood', 'true', (100, 200, 300, 500, 750)),
        Curve('fc400', 'fastfood', 'true', (200, 300, 500)),
        Curve('fc200', 'sparse', 'true', (30, 100, 200, 300, 500)),
        Curve('fc200', 'fastfood', 'pixels', (100, 200, 300, 500)),
        Curve('fc200', 'fastfood', 'few', (10, 30, 100, 300, 1000)),
        Curve('fc200', 'fastfood', 'labels', (100, 300, 1000, 3000, 10_000)),
        Curve('lenet', 'fastfood', 'true', (50, 100, 200, 300, 500)),
        Curve('lenet', 'fastfood', 'pixels', (100, 200, 300, 500, 1000)),
        Curve('fc200', 'dense', 'true', (30, 100)),
    )


TINY = Protocol(
    train=600,
    validation=100,
    test=200,
    few=100,
    steps=4,
    batch_size=16,
    seeds=2,
    rates=(1e-2,),
    tuned_at=30,
    curves=(
        Curve('fc20', 'fastfood', 'true', (10, 30)),
        Curve('fc20', 'sparse', 'labels', (10,)),
    ),
)


def run(folder: Path, protocol: Protocol) -> list[Row]:
    """Makes the missing rows of the folder.

    Returns:
        All rows of results.jsonl.

    Raises:
        ValueError: the folder has results of another protocol.
    """
    results = Results(folder, protocol)
    splits = nets.read_images(
        Path(protocol.images), protocol.train, protocol.validation, protocol.test
    )
    few = {
        name: nets.Split(
            {'image': split.inputs['image'][: protocol.few]}, split.labels[: protocol.few]
        )
        for name, split in splits.items()
    }
    data = {
        'true': splits,
        'pixels': nets.shuffled_pixels(splits, seed=0),
        'few': few,
        'labels': nets.shuffled_labels(few, seed=0),
    }
    fitters: dict[str, Fitter] = {}
    for curve in protocol.curves:
        if curve.data not in fitters:
            fitters[curve.data] = Fitter(data[curve.data], most=10_000)
        direct = curve._replace(projection='none', dimensions=(0,))
        for each in (direct, curve):
            _draw_curve(each, protocol, fitters[curve.data], results)
    first = protocol.curves[0]
    about = {'stage': 'together', 'net': first.net, 'projection': first.projection}
    about |= {'data': first.data, 'dimension': protocol.tuned_at, 'runs': protocol.seeds}
    results.once(about, lambda: {'factor': _factor(first, protocol, fitters[first.data])})
    return results.rows


def _factor(curve: Curve, protocol: Protocol, fitter: Fitter) -> float:
    """How many times as fast one program of all seeds is as one run after another."""
    seeds, steps = range(protocol.seeds), max(1, protocol.steps // 20)
    factor = fitter.factor(
        [nets.network(curve.net, seed) for seed in seeds],
        [_method(curve.projection, protocol.tuned_at, seed) for seed in seeds],
        Run(steps, protocol.batch_size, protocol.rates[0], 0),
    )
    return round(factor, 2)


def _draw_curve(curve: Curve, protocol: Protocol, fitter: Fitter, results: Results) -> None:
    """Tunes the rate, then trains every dimension and seed."""

    def row(stage: str, dimension: int, rate: float, seed: int) -> Mapping[str, Any]:
        fields = {'net': curve.net, 'projection': curve.projection, 'data': curve.data}
        fields |= {'stage': stage, 'dimension': dimension, 'rate': rate, 'seed': seed}
        steps = protocol.steps
        if curve.net == 'lenet':
            steps = int(_STEPS_OF_LENET * steps)
        return results.once(
            fields,
            lambda: fitter.fit(
                (curve.net, curve.projection, dimension),
                nets.network(curve.net, seed),
                _method(curve.projection, dimension, seed),
                Run(steps, protocol.batch_size, rate, seed),
            ),
        )

    score = f'{scored_split(curve.data, tuning=True)}/accuracy'
    at = protocol.tuned_at if curve.dimensions != (0,) else 0
    rate = max(protocol.rates, key=lambda each: row('tune', at, each, 0)[score])
    for dimension in curve.dimensions:
        for seed in range(protocol.seeds):
            row('final', dimension, rate, seed)


def _method(projection: Projection, dimension: int, seed: int) -> peftjax.PeftTransform:
    if projection == 'none':
        return peftjax.full()
    return peftjax.intrinsic(dimension=dimension, projection=projection, seed=seed)


def scored_split(data: str, tuning: bool = False) -> str:
    """The split whose accuracy is used: for few images, the training split.

    Shuffled labels can only be memorised.
    """
    if data in ('few', 'labels'):
        return 'train'
    return 'validation' if tuning else 'test'
