"""Published data sets by name."""

import difflib
from collections.abc import Mapping, Sequence

from peftjax.train.data.table_files import Record
from peftjax.train.readers.glue import GLUE, SUPERGLUE, few_shot_rte, halves, sentences, words
from peftjax.train.readers.layout import Layout, Records, first, read
from peftjax.train.readers.text import TEXTS
from peftjax.train.settings import DataSettings, SettingsError

READERS: Mapping[str, Layout] = {
    **{f'glue_{name}': sentences(name, task) for name, task in GLUE.items()},
    **{f'glue_{name}_halves': halves(sentences(name, task)) for name, task in GLUE.items()},
    **{f'superglue_{name}': sentences(name, task) for name, task in SUPERGLUE.items()},
    'glue_mrpc_words': words('mrpc', GLUE['mrpc']),
    **{f'superglue_{name}_words': words(name, task) for name, task in SUPERGLUE.items()},
    'superglue_rte_choices': few_shot_rte(),
    **TEXTS,
}
"""The layout of each data set. The columns of its rows are those of a task: text, second and label;
prompt and answer; text and answer for an encoder with a decoder; or text, choices and label."""


def layout_of(name: str) -> Layout:
    """The layout of a published data set.

    Raises:
        SettingsError: there is none of that name; the message has near names.

    Example:
        >>> layout_of('glue_rte').classes
        ('entailment', 'not_entailment')
    """
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, n=3, cutoff=0)
        raise SettingsError(f'no reader {name!r}; near names: {near}')
    return READERS[name]


def read_published(
    data: DataSettings, columns: Sequence[str], optional: Sequence[str] = ()
) -> Records:
    """The splits of the published data set that `data.reader` names.

    Raises:
        SettingsError: there is no such reader, or it does not give these columns.
        ValueError: see `peftjax.train.readers.layout.read`.
    """
    found = read(layout_of(data.reader), data)
    given = next(iter(found.values()))[0]
    if missing := [name for name in columns if name not in given]:
        raise SettingsError(
            f'reader {data.reader!r} gives {", ".join(given)}, and no {missing[0]!r}: '
            'choose a task that reads these columns'
        )
    kept = {*columns, *optional, 'references'}
    return {
        split: [{name: value for name, value in row.items() if name in kept} for row in rows]
        for split, rows in found.items()
    }


def first_published(data: DataSettings) -> Record:
    """The first training row of the published data set that `data.reader` names.

    Raises:
        SettingsError: there is no such reader.
        ValueError: see `peftjax.train.readers.layout.read`.
    """
    return first(layout_of(data.reader), data)


def classes_of(data: DataSettings) -> tuple[str, ...]:
    """The classes of the published data set, in their order; empty if there is no reader."""
    return layout_of(data.reader).classes if data.reader else ()
