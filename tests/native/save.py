"""Saves every method on every family: python -m tests.native.save FOLDER [FAMILY ...]."""

import json
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np

import peftjax
from tests.native.cases import FAMILIES, METHODS, Make, Places
from tests.oracle.cases import GOLDEN, arrays, load_base

TASKS = {
    'ForSequenceClassification': 'classification',
    'ForImageClassification': 'classification',
    'ForTokenClassification': 'token_classification',
}


def main(root: Path, chosen: Collection[str]) -> None:
    for family in chosen or FAMILIES:
        places, refused = FAMILIES[family], {}
        shutil.copytree(GOLDEN / family / 'base', root / family / 'base', dirs_exist_ok=True)
        model = load_base(GOLDEN / family / 'base', _task(family), True)
        inputs = arrays(GOLDEN / family / 'base' / 'inputs.npz')
        inputs.pop('labels', None)
        for name, make in METHODS.items():
            folder = root / family / name
            try:
                _save(folder, model, make, places, inputs)
            except ValueError as error:
                absent = isinstance(error, peftjax.TargetError)
                refused[name] = '' if absent else str(error)
            print(folder, flush=True)
        (root / family / 'refused.json').write_text(json.dumps(refused, indent=1))


def _task(family: str) -> str | None:
    config = json.loads((GOLDEN / family / 'base' / 'config.json').read_text())
    return next(
        (task for end, task in TASKS.items() if config['architectures'][0].endswith(end)), None
    )


def _save(
    folder: Path, model: peftjax.Model, make: Make, places: Places, inputs: dict[str, np.ndarray]
) -> None:
    transform = make(places)
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, 1, 0.1)
    peftjax.save_adapter(folder, model, transform, adapter)
    output = jax.jit(peftjax.adapt(model, transform))(adapter, frozen, **inputs)
    np.savez(folder / 'ours.npz', logits=getattr(output, 'last_hidden_state', output))


if __name__ == '__main__':
    main(Path(sys.argv[1]), sys.argv[2:])
