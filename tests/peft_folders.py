"""Files of Hugging Face's peft for tests: those there are, and copies that are changed."""

import json
import shutil

from safetensors.numpy import load_file, save_file

from tests.oracle.cases import GOLDEN, load_base

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


def base(architecture, scan):
    task = 'classification' if architecture == 'bert' else None
    return load_base(GOLDEN / architecture / 'base', task, scan)


def changed(tmp_path, source='llama/lora', fields=None, tensors=None):
    """A copy of a reference adapter, some of it changed; None takes a thing away."""
    target = tmp_path / 'changed'
    shutil.copytree(GOLDEN / source, target)
    config = json.loads((target / CONFIG).read_text())
    arrays = load_file(target / WEIGHTS)
    for new, old in ((fields or {}, config), (tensors or {}, arrays)):
        for name, value in new.items():
            if value is None:
                del old[name]
            else:
                old[name] = value
    (target / CONFIG).write_text(json.dumps(config))
    save_file(arrays, target / WEIGHTS)
    return target
