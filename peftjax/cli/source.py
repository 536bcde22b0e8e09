"""A base with an adapter, read from files or from the work folder of a run."""

import argparse
import itertools
import json
import pathlib
import re
from typing import Any, NamedTuple

import safetensors

import peftjax
from peftjax.cli.parser import Parser, UsageError, whole

BASE = (
    "a folder in Hugging Face layout, 'org/name' on the hub, a .gguf file, or "
    "'package:name/sub/folder'"
)
RUN = 'the work folder of a run, for its base and its best adapter'
ADAPTER = (
    'a folder of peftjax.save, or one with adapter_config.json and adapter_model.safetensors, or '
    "'org/name'"
)


_MOST = 2**24  # bytes of a config
_TASKS = ('classification', 'regression', 'token_classification')
_BY_TYPE = {'SEQ_CLS': 'classification', 'TOKEN_CLS': 'token_classification'}
_BY_CLASS = {
    'ForSequenceClassification': 'classification',
    'ForImageClassification': 'classification',
    'ForTokenClassification': 'token_classification',
}


# The last layer of a head in the files of an adapter.
_HEAD = re.compile(r'\.(classifier|score)(\.out_proj)?(\.modules_to_save)?\.weight$')


class Source(NamedTuple):
    """A model with an adapter.

    Attributes:
        model: the base.
        transform, adapter, frozen: of the method; the empty method where there is no adapter.
        base: where the base is, as `peftjax.load` takes it.
        labels: names of the classes, if a run knows them.
    """

    model: peftjax.Model
    transform: peftjax.PeftTransform
    adapter: Any
    frozen: peftjax.Frozen
    base: str
    labels: tuple[str, ...] = ()


def add_labels(parser: argparse._ActionsContainer) -> None:
    """The flag that says how many classes a head has."""
    parser.add_argument(
        '--num-labels',
        type=whole(1),
        metavar='N',
        help='classes of the head, if the adapter holds the head',
    )


def add_reading(parser: Parser) -> None:
    """The flags for facts about the base that its files and the adapter may lack."""
    group = parser.add_argument_group('facts that the files of base and adapter may lack')
    group.add_argument('--task', choices=_TASKS, help='the head')
    add_labels(group)
    group.add_argument(
        '--pooling',
        choices=('first', 'mean', 'none'),
        default='first',
        help='the input of the head of an encoder: the first token, or the mean of all (first)',
    )
    add_vocabulary(group)


def add_vocabulary(parser: argparse._ActionsContainer) -> None:
    """The flags for the embedding and the head that the adapter was made for."""
    parser.add_argument(
        '--vocab-size', type=whole(1), metavar='N', help='tokens, including those of the adapter'
    )
    parser.add_argument(
        '--untie', action='store_true', help='give the model a head that is not its embedding'
    )


def vocabulary_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `peftjax.load` from the flags of `add_vocabulary`, if a command has them."""
    given = vars(arguments)
    return {'vocab_size': given.get('vocab_size'), 'tie': False if given.get('untie') else None}


def add_force(parser: Parser) -> None:
    """The flag that lets a command write over what is there."""
    parser.add_argument(
        '--force',
        action='store_true',
        help='write into a folder that is not empty, or over a file, even the input; files with '
        'other names stay',
    )


def check_target(out: str, force: bool) -> None:
    """Checks that a command overwrites nothing without `force`.

    Raises:
        UsageError: `out` is a file or a folder that is not empty, and `force` is not given.
    """
    path = pathlib.Path(out)
    if force or not (path.exists() or path.is_symlink()):
        return
    if not path.is_dir():
        raise UsageError(f'{out} exists; write --force to replace it')
    held = sorted(each.name for each in itertools.islice(path.iterdir(), 4))
    if held:
        shown = ', '.join(held[:3]) + (', ...' if len(held) > 3 else '')
        raise UsageError(
            f'{out} holds {shown}; write another folder, or --force to put new files among them '
            'and replace those of the same names'
        )


def add_which(parser: Parser) -> None:
    """The flag that chooses an adapter of a run."""
    parser.add_argument(
        '--which',
        choices=('best', 'last'),
        default='best',
        help="a run's adapter of the best evaluation, or of the last step (best)",
    )


def add_non_finite(parser: Parser) -> None:
    """The flag that lets weights be NaN or infinite."""
    parser.add_argument(
        '--allow-non-finite',
        action='store_true',
        help='read weights that are NaN or infinite, to look at them',
    )


def is_run(path: str) -> bool:
    """Whether a path is the work folder of a run."""
    folder = pathlib.Path(path)
    return (folder / 'config.json').is_file() and (folder / 'adapter').is_dir()


def load_base(arguments: argparse.Namespace, **options: Any) -> peftjax.Model:
    """The base that the adapter was made for, with the head that either of them has."""
    given = vars(arguments)
    # Commands that read no weights do not have this flag.
    options = {'allow_non_finite': given.get('allow_non_finite', False), **options}
    options |= vocabulary_of(arguments)
    options['pooling'] = given.get('pooling', 'first')
    base, task, labels = arguments.base, given.get('task'), given.get('num_labels')
    if task is not None:
        return peftjax.load(base, task=task, num_labels=labels, **options)
    adapter = given.get('adapter')
    task = _task_of(base, adapter)
    if labels is None and adapter is not None:
        labels = _labels_of(pathlib.Path(adapter, 'adapter_model.safetensors'))
    if labels is not None:
        return peftjax.load(base, task=task, num_labels=labels, **options)
    try:
        return peftjax.load(base, task=task, **options)
    except ValueError:
        return peftjax.load(base, **options)


def _task_of(base: str, adapter: str | None) -> str:
    """The head that the files of a base or an adapter name; 'classification' if they name none."""
    kind = (
        None
        if adapter is None
        else _field(pathlib.Path(adapter, 'adapter_config.json'), 'task_type')
    )
    named = _field(pathlib.Path(base, 'config.json'), 'architectures')
    first = named[0] if isinstance(named, list) and named else None
    ending = first[first.find('For') :] if isinstance(first, str) and 'For' in first else ''
    found = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    return _BY_CLASS.get(ending) or found or 'classification'


def _labels_of(file: pathlib.Path) -> int | None:
    """The classes of the head in an adapter's file; None without a head or a readable file.

    `peftjax.load_adapter` says what is wrong with the file.
    """
    try:
        with safetensors.safe_open(file, 'numpy') as held:
            names = held.keys()
            heads = [name for name in names if _HEAD.search(name)]
            return held.get_slice(heads[-1]).get_shape()[0] if heads else None
    except (OSError, safetensors.SafetensorError):
        return None


def _field(path: pathlib.Path, name: str) -> Any:
    """A field of a JSON file, or None; `peftjax.load` says what is wrong with the file."""
    try:
        with path.open('rb') as file:
            return json.loads(file.read(_MOST)).get(name)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def open_run(path: str, which: str = 'best', allow_non_finite: bool = False) -> Source:
    """Base and adapter of a run.

    Raises:
        SettingsError: the folder holds no run, or a run without an adapter.
    """
    folder = peftjax.train.RunFolder(path)
    model = folder.load_model()
    restored = folder.load_adapter(
        model, 'last' if which == 'last' else 'best', allow_non_finite=allow_non_finite
    )
    settings = folder.settings
    return Source(model, *restored, settings.model.source, tuple(settings.data.labels))


def is_saved(path: str) -> bool:
    """Whether a path is a folder of `peftjax.save`."""
    return (pathlib.Path(path) / 'peftjax.json').is_file()


def open_adapter(
    path: str, model: peftjax.Model, which: str = 'best', allow_non_finite: bool = False
) -> peftjax.serving.Trained:
    """Transform, adapter and frozen from any folder that holds an adapter.

    Args:
        path: a folder written by peft, AdapterHub or `peftjax.save`, the work folder of a run, or
            'org/name'.
        model: the base. Folders of `peftjax.save` and runs need its layers stacked.
        which: 'best' or 'last', of a run.

    Raises:
        ValueError: files are missing or do not fit the model.
    """
    if is_run(path):
        return peftjax.train.RunFolder(path).load_adapter(
            model, 'last' if which == 'last' else 'best', allow_non_finite=allow_non_finite
        )
    if is_saved(path):
        return peftjax.restore(path, model, allow_non_finite=allow_non_finite)
    loaded = peftjax.load_adapter(path, model, allow_non_finite=allow_non_finite)
    return loaded.transform, loaded.adapter, loaded.frozen


def open_source(arguments: argparse.Namespace, **options: Any) -> Source:
    """Base and adapter, from their files or from a run.

    Args:
        arguments: with base, adapter, allow_non_finite, which, and the flags of `add_reading`.
        options: of `peftjax.load`.

    Raises:
        ValueError: an adapter is needed and not given; files are missing or do not fit.
    """
    if arguments.adapter is None:
        if not is_run(arguments.base):
            raise ValueError(
                f'{arguments.base} is no work folder of a run; give an adapter after the base'
            )
        return open_run(arguments.base, arguments.which, arguments.allow_non_finite)
    if is_saved(arguments.adapter):
        # Its paths are those of a model with stacked layers.
        model = load_base(arguments, **{**options, 'scan': True})
        restored = peftjax.restore(
            arguments.adapter, model, allow_non_finite=arguments.allow_non_finite
        )
        return Source(model, *restored, arguments.base)
    model = load_base(arguments, **options)
    loaded = peftjax.load_adapter(
        arguments.adapter, model, allow_non_finite=arguments.allow_non_finite
    )
    return Source(model, loaded.transform, loaded.adapter, loaded.frozen, arguments.base)
