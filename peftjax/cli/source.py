"""A base with an adapter, from where the command line says: files, or the work folder of a run."""

import argparse
import pathlib
from typing import Any, NamedTuple

import peftjax
from peftjax.cli.parser import Parser, whole

BASE = (
    "a folder in Hugging Face layout, 'org/name' on the hub, a .gguf file, or "
    "'package:name/sub/folder'"
)
RUN = 'the work folder of a run, whose base and best adapter are taken'
ADAPTER = (
    'a folder of peftjax.save, or one with adapter_config.json and adapter_model.safetensors, or '
    "'org/name'"
)


class Source(NamedTuple):
    """A model with an adapter.

    Attributes:
        model: the base.
        transform, adapter, frozen: of the method; the empty method where there is no adapter.
        base: where the base is, as `peftjax.load` takes it.
    """

    model: peftjax.Model
    transform: peftjax.PeftTransform
    adapter: Any
    frozen: peftjax.Frozen
    base: str


def add_labels(parser: Parser) -> None:
    """The flag that says how many classes a head has."""
    parser.add_argument(
        '--num-labels',
        type=whole(1),
        metavar='N',
        help='classes of an encoder whose adapter brings its head',
    )


def add_which(parser: Parser) -> None:
    """The flag that chooses an adapter of a run."""
    parser.add_argument(
        '--which',
        choices=('best', 'last'),
        default='best',
        help='of a run: the adapter of the best evaluation, or of the last step (best)',
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
    """The base as its adapters mean it: an encoder with a head, if it or they have one."""
    base, labels = arguments.base, arguments.num_labels
    # Where no weights are read, a command has no such flag.
    options = {'allow_non_finite': vars(arguments).get('allow_non_finite', False), **options}
    if labels is not None:
        return peftjax.load(base, task='classification', num_labels=labels, **options)
    try:
        return peftjax.load(base, task='classification', **options)
    except ValueError:
        return peftjax.load(base, **options)


def open_run(path: str, which: str = 'best', allow_non_finite: bool = False) -> Source:
    """Base and adapter of a run.

    Raises:
        SettingsError: the folder holds no run, or one that has no adapter yet.
    """
    folder = peftjax.train.RunFolder(path)
    model = folder.load_model()
    restored = folder.load_adapter(
        model, 'last' if which == 'last' else 'best', allow_non_finite=allow_non_finite
    )
    return Source(model, *restored, folder.settings.model.source)


def is_saved(path: str) -> bool:
    """Whether a path is a folder of `peftjax.save`."""
    return (pathlib.Path(path) / 'peftjax.json').is_file()


def open_adapter(
    path: str, model: peftjax.Model, which: str = 'best', allow_non_finite: bool = False
) -> peftjax.serving.Trained:
    """A transform, its adapter and what is frozen beside, from any folder that holds an adapter.

    Args:
        path: a folder of peft's or AdapterHub's files or of `peftjax.save`, the work folder of a
            run, or 'org/name'.
        model: the base. Folders of `peftjax.save` and runs need its layers stacked.
        which: of a run.

    Raises:
        ValueError: files that are not there, or do not fit the model.
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
    """Base and adapter, or a run in the place of both.

    Args:
        arguments: base, adapter, num_labels, allow_non_finite and, of a run, which.
        options: of `peftjax.load`.

    Raises:
        ValueError: an adapter is needed and not given; files that are not there or do not fit.
    """
    if arguments.adapter is None:
        if not is_run(arguments.base):
            raise ValueError(
                f'{arguments.base} is no work folder of a run; name an adapter behind the base'
            )
        return open_run(arguments.base, arguments.which, arguments.allow_non_finite)
    if is_saved(arguments.adapter):
        # Its paths are those of the model as a run loads it, with its layers stacked.
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
