"""Reference cases on disk: adapters of other libraries, and what those libraries compute with them.

A folder of cases holds bases and, beside each, the adapters made for it:

    <base>/base/    config.json, model.safetensors
    <base>/<case>/  adapter_config.json and adapter_model.safetensors (AdapterHub:
                    adapter.safetensors), as the library wrote them

AdapterHub's cases may stand in `adapters/<base>/`, and those of a base that got more tokens in
another folder, such as `new_tokens/<base>/`. Each of these folders has its numbers:

    inputs.npz      arguments of the model, and `labels`; a case without one takes its base's
    logits.npz      `logits` (of a model without a head: `last_hidden_state`), `merged_logits`,
                    `loss`, `task_loss`
    grads.safetensors    the gradient of `loss` by every tensor that the library trains
    encoder.safetensors, subspaces.npz, aux.npz    what the library trained with and leaves out of
                    its file
"""

import dataclasses
import functools
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

import peftjax

GOLDEN = Path(__file__).parents[1] / 'golden'
CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
HUB_WEIGHTS = 'adapter.safetensors'
Tensors = dict[str, np.ndarray]
_TASKS = {
    'ForSequenceClassification': 'classification',
    'ForImageClassification': 'classification',
    'ForTokenClassification': 'token_classification',
}


_UNREADABLE = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile)


class MalformedError(Exception):
    """A folder that holds no cases, or a case that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One adapter of another library.

    Attributes:
        name: its path in the folder of cases.
        base: the folder of its base.
        kind: the class that its library ran, 'LlamaForCausalLM'.
        config: its adapter_config.json.
        tensors: its file. gradients: by the library's names of what it trains; may be empty.
        inputs: arguments of the model. labels: token ids with -100 where none counts, or classes.
        outputs: what logits.npz holds.
    """

    name: str
    folder: Path
    base: Path
    kind: str
    config: dict[str, Any]
    tensors: Tensors
    gradients: Tensors
    inputs: Tensors
    labels: np.ndarray | None
    outputs: Tensors

    @property
    def hub(self) -> bool:
        """Whether it is AdapterHub's, and not peft's."""
        return 'peft_type' not in self.config

    @property
    def headless(self) -> bool:
        """AdapterHub's files lack the head that a classifier was trained with."""
        return self.hub and self.task is not None

    @property
    def told(self) -> dict[str, Any]:
        """What `peftjax.load_adapter` is told beside the file: which ReFT its folder is called."""
        plain = self.hub and self.config['config'].get('orthogonality') is False
        return {'reft': self.folder.name} if plain else {}

    @property
    def task(self) -> str | None:
        """Of `peftjax.load`."""
        return next((task for end, task in _TASKS.items() if self.kind.endswith(end)), None)

    def config_of_base(self) -> dict[str, Any]:
        """The base's config.json."""
        return json.loads((self.base / 'config.json').read_text())

    def model(self, scan: bool) -> peftjax.Model:
        """The base that the adapter was made for.

        Raises:
            ValueError: `peftjax.load` does not know it.
        """
        task = None if self.headless else self.task
        return load_base(self.base, task, scan, self.vocab_size)

    @property
    def vocab_size(self) -> int | None:
        """Of a base that was enlarged for the adapter; None where it is as it was."""
        if not self.kind.endswith(('ForCausalLM', 'LMHeadModel')):
            return None
        size = self.outputs['logits'].shape[-1]
        return None if size == self.config_of_base()['vocab_size'] else size


@functools.cache
def load_base(
    folder: Path, task: str | None, scan: bool, vocab_size: int | None = None
) -> peftjax.Model:
    return peftjax.load(folder, task=task, scan=scan, vocab_size=vocab_size)


class Found(NamedTuple):
    """What is below a folder: cases, and other adapters by name, with the reason.

    Attributes:
        cases: those that can be judged.
        others: adapters without a base or stored outputs.
        unreadable: cases with a file that cannot be read.
    """

    cases: list[Case]
    others: dict[str, str]
    unreadable: dict[str, str]


def find(root: Path) -> Found:
    """The cases below a folder.

    Raises:
        MalformedError: no folder, or no case that can be read.
    """
    if not root.is_dir():
        raise MalformedError(f'{root} is no folder')
    cases, others, unreadable = [], {}, {}
    for folder in sorted(path.parent for path in root.rglob(CONFIG)):
        name = folder.relative_to(root).as_posix()
        base = _base_of(folder, root)
        if base is None:
            others[name] = 'there is no folder base beside it'
        elif not (folder / 'logits.npz').is_file():
            others[name] = 'it has no logits.npz'
        else:
            try:
                cases.append(read(folder, base, name))
            except MalformedError as error:
                unreadable[name] = str(error)
    if not cases:
        said = '; '.join(f'{name}: {why}' for name, why in {**others, **unreadable}.items())
        raise MalformedError(f'{root} holds no <base>/<case>/{CONFIG} with logits.npz. {said}')
    return Found(cases, others, unreadable)


def stored(name: str) -> Case:
    """One of the repository's own cases, 'llama/lora'."""
    folder = GOLDEN / name
    return read(folder, GOLDEN / folder.parent.name / 'base', name)


def _base_of(folder: Path, root: Path) -> Path | None:
    places = (folder.parent / 'base', root / folder.parent.name / 'base')
    return next((place for place in places if (place / 'config.json').is_file()), None)


def read(folder: Path, base: Path, name: str) -> Case:
    """One case.

    Raises:
        MalformedError: a file that is missing or cannot be read.
    """
    own = folder / 'inputs.npz'
    try:
        config = json.loads((folder / CONFIG).read_text())
        kinds = json.loads((base / 'config.json').read_text()).get('architectures') or ['']
        weights = folder / (WEIGHTS if 'peft_type' in config else HUB_WEIGHTS)
        gradients = folder / 'grads.safetensors'
        inputs = arrays(own if own.is_file() else base / 'inputs.npz')
        labels = inputs.pop('labels', None)
        return Case(
            name,
            folder,
            base,
            kinds[0],
            config,
            load_file(weights),
            load_file(gradients) if gradients.is_file() else {},
            inputs,
            labels,
            arrays(folder / 'logits.npz'),
        )
    except (*_UNREADABLE, SafetensorError) as error:
        raise MalformedError(f'{folder}: {type(error).__name__}: {error}') from error


def arrays(path: Path) -> Tensors:
    """What is in an .npz file; whole numbers as int32, which a model takes."""
    with np.load(path) as file:
        return {
            name: file[name].astype(np.int32) if file[name].dtype == np.int64 else file[name]
            for name in file
        }
