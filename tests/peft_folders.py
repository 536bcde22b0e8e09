"""Files of Hugging Face's peft for tests: those there are, changed copies, and new ones."""

import json
import shutil

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

import peftjax
from tests.oracle.cases import GOLDEN, load_base

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
IDS = {'input_ids': np.arange(1, 13, dtype=np.int32).reshape(2, 6)}


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


def saved(tmp_path, model, transform, **more):
    """Writes a perturbed adapter; gives it, what is frozen, and the config and tensors written."""
    fresh, frozen = transform.init(jax.random.key(0), model)
    adapter = peftjax.testing.perturb(fresh, 3, 0.1)
    peftjax.save_adapter(tmp_path / 'new', model, transform, adapter, **more)
    config = json.loads((tmp_path / 'new' / CONFIG).read_text())
    return adapter, frozen, config, load_file(tmp_path / 'new' / WEIGHTS)


def assert_read_back(tmp_path, model, transform, adapter, frozen, inputs):
    """What `saved` wrote computes what the adapter did before."""
    loaded = peftjax.load_adapter(tmp_path / 'new', model)
    before = peftjax.adapt(model, transform)(adapter, frozen, **inputs)
    after = peftjax.adapt(model, loaded.transform)(loaded.adapter, loaded.frozen, **inputs)
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert jax.tree.structure(loaded.adapter) == jax.tree.structure(adapter)
