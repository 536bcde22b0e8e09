"""Where a checkpoint is: on the hub, in a folder or a file, or inside an installed package."""

import importlib.util
import os
import pathlib
import re

import huggingface_hub

from peftjax.interop.errors import CheckpointError

# Pickles (*.bin, *.pt) run code when opened, so they are not even downloaded.
HUB_FILES = (
    'config.json',
    'generation_config.json',
    'model.safetensors',
    'model.safetensors.index.json',
    'model-*-of-*.safetensors',
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'chat_template.jinja',
)

_HUB = r'([A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9_](?:[\w.-]*\w)?)(?:@([\w./-]+))?'
# Names of the hub's first models, such as 'gpt2'. New models cannot get such names any more.
_BARE = r'([A-Za-z0-9](?:[\w.-]*\w)?)(?:@([\w./-]+))?'
_FILE = re.compile(r'.*\.(gguf|safetensors|bin|pt|pth|ckpt|json|zip|tar|gz)', re.IGNORECASE)
# Usual names of local folders. Anyone may own such a name on the hub.
_FOLDERS = frozenset(
    {
        *('adapter', 'adapters', 'artifacts', 'base', 'bases', 'build', 'ckpt', 'ckpts', 'cache'),
        *('checkpoint', 'checkpoints', 'data', 'dist', 'exp', 'experiment', 'experiments', 'home'),
        *('log', 'logs', 'lora', 'loras', 'merged', 'mnt', 'model', 'models', 'out', 'output'),
        *('outputs', 'result', 'results', 'run', 'runs', 'save', 'saved', 'saves', 'scratch'),
        *('src', 'sweep', 'sweeps', 'tmp', 'weights', 'work', 'workdir'),
    }
)


def locate(source: str | os.PathLike[str], *, weights: bool = True) -> pathlib.Path:
    """The local folder or .gguf file that `source` means, downloaded first if it is a hub id.

    source: 'org/name' or 'org/name@revision' on the Hugging Face hub, or a name without an
    organisation, as the first models there have ('gpt2'); a local folder; a local .gguf file;
    'package:name/sub/folder' or 'package:name/file.gguf' inside an installed package, which is
    found without being imported. A local path takes precedence over a hub id of the same spelling.
    weights: whether to download them too.

    Raises:
        CheckpointError: nothing is there, or the text is none of these.
    """
    text = os.fspath(source)
    if text.startswith('package:'):
        return _checkpoint(package_path(text), text)
    path = pathlib.Path(text).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == '.gguf'):
        return path
    if path.exists():
        raise CheckpointError(f'{path} is neither a folder nor a .gguf file')
    hub = re.fullmatch(_HUB, text) or re.fullmatch(_BARE, text)
    if hub is None or _FILE.fullmatch(text):
        raise CheckpointError(
            f"{text!r} not found: write an existing folder or .gguf file, a hub id 'org/name', or "
            "'package:name/sub/folder' for files inside an installed package"
        )
    files = [name for name in HUB_FILES if weights or not name.endswith('.safetensors')]
    return _downloaded(text, hub, files)


def _downloaded(text: str, hub: re.Match[str], files: list[str]) -> pathlib.Path:
    """The folder of a hub id's files in the hub's cache.

    Raises:
        CheckpointError: the text looks like a path here, or the hub gives no such files.
    """
    first = hub[1].partition('/')[0]
    if hub[2] is None and (pathlib.Path(first).exists() or first.lower() in _FOLDERS):
        raise CheckpointError(
            f'{text!r} is not found: it is not a folder here, but {first!r} is one or sounds like '
            'one. Anyone may own that name on the hub, so the hub is not asked; if it is meant, '
            f"write '{text}@main'"
        )
    try:
        found = huggingface_hub.snapshot_download(hub[1], revision=hub[2], allow_patterns=files)
    except (OSError, ValueError) as error:  # The types of the library's own errors.
        raise CheckpointError(
            f'{text!r} is not a folder here, and the hub gives no such repository: '
            f'{str(error).strip().partition(chr(10))[0]}'
        ) from error
    return pathlib.Path(found)


def locate_adapter(source: str | os.PathLike[str]) -> pathlib.Path:
    """The local folder of an adapter, downloaded first if `source` is 'org/name[@revision]'.

    Raises:
        CheckpointError: nothing is there, or the text is neither a folder nor a hub id.
    """
    path = pathlib.Path(os.fspath(source)).expanduser()
    if path.is_dir():
        return path
    hub = re.fullmatch(_HUB, os.fspath(source))
    if path.exists() or hub is None:
        raise CheckpointError(
            f'{os.fspath(source)!r} is not the folder of an adapter; give a folder '
            "that save_adapter wrote, or a hub id 'org/name'"
        )
    files = ['adapter_config.json', 'adapter_model.safetensors', 'adapter.safetensors']
    return _downloaded(os.fspath(source), hub, files)


def check_inside(folder: pathlib.Path, name: str) -> None:
    """Checks that a file of a folder lies in it, or in the hub's cache if the folder does.

    Raises:
        CheckpointError: it is a link to a file elsewhere.
    """
    found, inside = (folder / name).resolve(), folder.resolve()
    cache = inside.parent.parent / 'blobs' if inside.parent.name == 'snapshots' else inside
    if not (found.is_relative_to(inside) or found.is_relative_to(cache)):
        raise CheckpointError(
            f'{folder / name} is a link to {found}, outside its folder; put a copy in its place if '
            'that file is meant'
        )


def package_path(source: str) -> pathlib.Path:
    """The file or folder that 'package:name/sub/path' means, found without importing the package.

    Raises:
        CheckpointError: no such package is installed, or it holds no such path.
    """
    name, _, inside = source.removeprefix('package:').partition('/')
    if not name.isidentifier():
        raise CheckpointError(f'{source!r}: {name!r} is not the name of a top-level package')
    # A top-level name is looked up without running any of the package's code.
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f'{source!r}: no package {name!r} is installed here')
    if '..' in pathlib.PurePath(inside).parts or pathlib.PurePath(inside).is_absolute():
        raise CheckpointError(f'{source!r}: the path must stay inside the package')
    for root in spec.submodule_search_locations:
        path = pathlib.Path(root) / inside
        if path.exists():
            return path
    raise CheckpointError(f'{source!r}: {name!r} is installed but holds no {inside!r}')


def _checkpoint(path: pathlib.Path, text: str) -> pathlib.Path:
    if path.is_dir() or path.suffix == '.gguf':
        return path
    raise CheckpointError(f'{text!r} is neither a folder nor a .gguf file')
