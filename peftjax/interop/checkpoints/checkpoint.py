"""Opens the files of a checkpoint, whatever the format."""

import os
import pathlib
import re
from typing import Any, NamedTuple

from peftjax.interop.checkpoints import assemble
from peftjax.interop.checkpoints.tokenizer import (
    Tokenizer,
    tokenizer_from_folder,
    tokenizer_from_gguf,
)
from peftjax.interop.errors import CheckpointError
from peftjax.interop.files import sources
from peftjax.interop.files.bounded_json import read_object
from peftjax.interop.files.safetensors_files import has_weights, open_folder
from peftjax.interop.files.steady import steadily
from peftjax.interop.files.tensors import Tensors
from peftjax.interop.gguf import files as gguf_files
from peftjax.interop.gguf.format import open_gguf
from peftjax.models.names import Rule
from peftjax.models.registry import Family, family_of


class Checkpoint(NamedTuple):
    """A checkpoint whose files are open.

    Attributes:
        family, config: the model to build.
        names: tensors and the leaves that they fill.
        tensors: None if only shapes are needed and there is only a config.
        surplus: regexes of tensors that are not for leaves.
        tokenizer: None if the checkpoint has no tokenizer.
    """

    family: Family
    config: Any
    names: tuple[Rule, ...]
    tensors: Tensors | None
    surplus: tuple[str, ...]
    tokenizer: Tokenizer | None


def open_checkpoint(
    source: str | os.PathLike[str], ignore: tuple[str, ...], abstract: bool
) -> Checkpoint:
    """Opens the source of `peftjax.load`.

    Raises:
        CheckpointError: a source that does not exist; a file that is corrupt, or of a model that is
            not built here.
    """
    path = sources.locate(source, weights=not abstract)
    if path.suffix == '.gguf' and path.is_file():
        file = open_gguf(path)
        try:
            config = gguf_files.parse_gguf(file, ignore)
        except CheckpointError:
            raise
        except (ValueError, TypeError, ArithmeticError, KeyError) as error:
            raise CheckpointError(f'{path}: {error}') from error
        return Checkpoint(
            family_of('llama'),
            config,
            gguf_files.LLAMA_GGUF_NAMES,
            gguf_files.gguf_tensors(file, config),
            (re.escape(gguf_files.ROPE_DIVISORS),),
            tokenizer_from_gguf(file.metadata, str(path)),
        )
    return steadily(path, lambda: _open_folder(path, ignore, abstract))


def _open_folder(path: pathlib.Path, ignore: tuple[str, ...], abstract: bool) -> Checkpoint:
    raw = read_object(path / 'config.json')
    try:
        family = family_of(raw.get('model_type'))
        config = family.parse(raw, ignore)
    except (TypeError, AttributeError, ArithmeticError, KeyError) as error:
        # A file may hold anything in place of a number, a word or an object.
        raise CheckpointError(
            f'{path / "config.json"} has a field of the wrong kind for a {raw["model_type"]}: '
            f'{error}'
        ) from error
    except ValueError as error:
        raise CheckpointError(f'{path / "config.json"}: {error}') from error
    # The config is enough for shapes, but weights that are there are checked against it.
    tensors = None if abstract and not has_weights(path) else open_folder(path)
    return Checkpoint(
        family,
        config,
        family.names,
        tensors and assemble.strip_prefix(tensors, family.prefix),
        (),
        tokenizer_from_folder(path),
    )
