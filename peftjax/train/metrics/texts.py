"""Metrics of texts: of the probability of given texts, and of generated texts."""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sacrebleu
from rouge_score import rouge_scorer

from peftjax.train.task import Outputs

TextMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
"""A function from generated texts, and one or more references of each, to a number."""


def perplexity(classes: Sequence[str]) -> Callable[[Outputs], float]:
    """`exp` of the mean cross-entropy of a token, in nats, over all tokens that count.

    Example:
        >>> outputs = {'losses': [np.float32(0.0), np.float32(2.0)], 'counts': [np.float32(1)] * 2}
        >>> round(perplexity(())(outputs), 4)
        2.7183
    """
    del classes

    def compute(outputs: Outputs) -> float:
        losses, counts = (np.asarray(outputs[n], np.float64).sum() for n in ('losses', 'counts'))
        mean = losses / max(counts, 1.0)
        return math.exp(mean) if mean < 700 else math.inf

    return compute


def exact_match(found: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of texts that equal one of their references, without spaces around them."""
    pairs = zip(found, references, strict=True)
    return float(np.mean([one.strip() in [each.strip() for each in of] for one, of in pairs]))


def bleu(found: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of the corpus, 0 to 100, by sacrebleu with its own tokenizer ('13a').

    Example:
        >>> round(bleu(['a cat sat on it'], [['a dog sat on it now', 'a cat sat on it']]), 3)
        100.0
    """
    return float(sacrebleu.corpus_bleu(list(found), _streams(references)).score)


def chrf(found: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """chrF2 of the corpus, 0 to 100, by sacrebleu."""
    return float(sacrebleu.corpus_chrf(list(found), _streams(references)).score)


def _streams(references: Sequence[Sequence[str]]) -> Any:
    """The first reference of every text, the second ones, ...; None where a text has no more."""
    return list(map(list, itertools.zip_longest(*references)))


def rouge(kind: str) -> TextMetric:
    """The mean F1 of ROUGE of a kind ('rouge1', 'rouge2', 'rougeL'), with Porter's stemmer.

    If a text has several references, the closest one counts.
    """
    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=True)

    def compute(found: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        pairs = zip(references, found, strict=True)
        best = (max(scorer.score(each, one)[kind].fmeasure for each in of) for of, one in pairs)
        return float(np.mean(list(best)))

    return compute


def last_number(found: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of texts whose last number equals that of a reference, as GSM8K is scored.

    Example:
        >>> last_number(['so 3 + 4 = 7.', 'none'], [['#### 7'], ['#### 1,000']])
        0.5
    """
    pairs = zip(found, references, strict=True)
    numbers = ((_last(one), {_last(each) for each in of} - {None}) for one, of in pairs)
    return float(np.mean([one in of for one, of in numbers]))


def _last(text: str) -> float | None:
    numbers = re.findall(r'-?\d[\d,]*(?:\.\d+)?', text)
    return float(numbers[-1].replace(',', '')) if numbers else None


TEXT_METRICS: Mapping[str, TextMetric] = {
    'exact_match': exact_match,
    'bleu': bleu,
    'chrf': chrf,
    'rouge1': rouge('rouge1'),
    'rouge2': rouge('rouge2'),
    'rougeL': rouge('rougeL'),
    'last_number': last_number,
}
