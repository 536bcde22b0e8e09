"""Tasks by name: how each is made, the head that it needs, and the columns that it reads."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import peftjax
from peftjax.train.dotted import find_function
from peftjax.train.settings import Settings
from peftjax.train.task import Task
from peftjax.train.tasks import classify, corpora, distillation, writing
from peftjax.train.tasks.choices import choices
from peftjax.train.tasks.choices_decoder import choices_decoder
from peftjax.train.tasks.contrastive import contrastive
from peftjax.train.tasks.images import images
from peftjax.train.tasks.preference import preference, unpaired_preference

TaskFactory = Callable[[Settings, peftjax.Model], Task]


class Kind(NamedTuple):
    """A task that is known by name.

    Attributes:
        make: a function from the settings and the model to the task.
        head: of the model, as `peftjax.load` names it; None for the backbone alone.
        columns: roles of the columns that it needs.
        optional: roles of columns that it reads if the table has them.
        classes: role of the column whose values are classes to be counted.
        named: roles of columns that it reads only if the settings name them.
    """

    make: TaskFactory
    head: str | None
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    classes: str | None = None
    named: tuple[str, ...] = ()


_TEXT = ('text', 'label')
_CHOICES = ('text', 'choices', 'label')
TASKS: Mapping[str, Kind] = {
    'classification': Kind(
        classify.classification, 'classification', _TEXT, (), 'label', ('second',)
    ),
    'pairs': Kind(classify.classification, 'classification', (*_TEXT, 'second'), (), 'label'),
    'regression': Kind(classify.regression, 'regression', _TEXT, named=('second',)),
    'pair_regression': Kind(classify.regression, 'regression', (*_TEXT, 'second')),
    'token_classification': Kind(
        classify.token_classification, 'token_classification', ('words', 'tags'), (), 'tags'
    ),
    'text': Kind(writing.text, 'causal_lm', ('text',)),
    'instructions': Kind(writing.instructions, 'causal_lm', ('prompt', 'answer'), ('input',)),
    'conversations': Kind(writing.instructions, 'causal_lm', ('messages',)),
    'seq2seq': Kind(writing.seq2seq, 'seq2seq_lm', ('text', 'answer')),
    'images': Kind(images, 'classification', ('image', 'label'), (), 'label'),
    'preference': Kind(preference, 'causal_lm', ('chosen', 'rejected'), ('prompt',)),
    'unpaired_preference': Kind(
        unpaired_preference, 'causal_lm', ('completion', 'label'), ('prompt',)
    ),
    'contrastive': Kind(contrastive, None, ('anchor', 'positive'), ('negative', 'group')),
    'distillation': Kind(distillation.classification, 'classification', _TEXT, (), 'label'),
    'distillation_pairs': Kind(
        distillation.classification, 'classification', (*_TEXT, 'second'), (), 'label'
    ),
    'distillation_text': Kind(distillation.text, 'causal_lm', ('text',)),
    'distillation_instructions': Kind(
        distillation.instructions, 'causal_lm', ('prompt', 'answer'), ('input',)
    ),
    'choices': Kind(choices, 'seq2seq_lm', _CHOICES),
    'choices_decoder': Kind(choices_decoder, 'causal_lm', _CHOICES),
    'film_reviews': Kind(corpora.film_reviews, 'classification'),
    'gsm8k': Kind(corpora.gsm8k, 'causal_lm'),
}


def head_of(task: str) -> str | None:
    """The head that a task needs, if any; for a task of your own, model.task must name it."""
    return TASKS[task].head if task in TASKS else None


def find_task(name: str) -> TaskFactory:
    """A task by its name, or of your own as 'package.module:function'.

    Raises:
        SettingsError: there is none; the message has near names.

    Example:
        >>> find_task('clasification')
        Traceback (most recent call last):
        peftjax.train.typed.SettingsError: no task 'clasification'; near names: ...
    """
    return TASKS[name].make if name in TASKS else find_function('task', name, TASKS)
