"""What a row needs that is not on this machine, found without a download."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub

from peftjax.models.registry import family_of
from peftjax.reproduce.rows import Row


def missing(row: Row) -> list[str]:
    """What a row needs that is not here: a model family, a method on it, weights, data, libraries.

    Nothing is downloaded or loaded. Weights and data of the hub are listed if they are not in the
    local cache, although a run would download them.

    Example:
        >>> from peftjax.reproduce import table
        >>> missing(table('configs/papers.toml')['boft.sst2'])[0]
        "model family 'deberta-v2', which is not supported"
    """
    settings, starts = row.settings, [] if row.start is None else [row.start]
    return [
        *_family(row.family),
        *_method(row),
        *_weights(settings.model.source),
        *(line for each in (row, *starts) for line in _data(each)),
        *_libraries(row),
    ]


def _family(family: str) -> Iterator[str]:
    try:
        family_of(family)
    except ValueError:
        yield f'model family {family!r}, which is not supported'


def _method(row: Row) -> Iterator[str]:
    prompts = {'prompt_tuning', 'p_tuning'}.intersection(row.settings.methods)
    if prompts and row.settings.model.task == 'seq2seq_lm':
        yield f'method {prompts.pop()} on an encoder and a decoder that share an embedding'


def _weights(source: str) -> Iterator[str]:
    if _is_local(source):
        return
    name, _, revision = source.partition('@')
    files = ('model.safetensors', 'model.safetensors.index.json')
    held = (
        huggingface_hub.try_to_load_from_cache(name, file, revision=revision or None)
        for file in files
    )
    if not any(isinstance(path, str) for path in held):
        yield f'weights {source} (a run downloads them)'


def _data(row: Row) -> Iterator[str]:
    data = row.settings.data
    for source in (data.source, *data.splits.values()):
        if source.startswith('hf:'):
            name = source.removeprefix('hf:').partition('#')[0].partition(':')[0]
            folder = f'datasets--{name.replace("/", "--")}'
            cached = Path(huggingface_hub.constants.HF_HUB_CACHE) / folder / 'snapshots'
            if not cached.is_dir():
                yield f'data {source} (a run downloads them)'
        elif not any(Path(source.replace('{split}', each)).exists() for each in ('train', 'test')):
            yield f'data {source}' + (f' ({row.data_from})' if row.data_from else '')


def _libraries(row: Row) -> Iterator[str]:
    if row.settings.data.source.startswith('hf:') and not _has('datasets'):
        yield "library datasets: pip install 'peftjax[datasets]'"


def _is_local(source: str) -> bool:
    return source.startswith('package:') or Path(source).expanduser().exists()


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
