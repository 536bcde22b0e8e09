"""What a user does first with the wheel. `nox -s wheel` runs this outside the checkout.

    python -I tests/installed.py WHEEL SDIST

The environment holds the wheel and its requirements, nothing else.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import peftjax

CHECKOUT = pathlib.Path(__file__).parents[1]
BERT = {
    'model_type': 'bert',
    'vocab_size': 30,
    'hidden_size': 16,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'intermediate_size': 32,
    'max_position_embeddings': 20,
    'type_vocab_size': 2,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-12,
}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name='out')(nn.relu(nn.Dense(8, name='hidden')(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def expect(condition: Any, said: str) -> None:
    if not condition:
        sys.exit(f'installed.py: {said}')


def check_files(wheel: str, sdist: str) -> None:
    """The wheel holds peftjax and nothing else; the sdist what builds it, and the licence."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name for name in names if name.endswith('.dist-info/METADATA'))
        text = archive.read(info).decode()
    tops = {name.split('/')[0] for name in names}
    expect(tops == {'peftjax', info.split('/')[0]}, f'the wheel holds {sorted(tops)}')
    expect('peftjax/py.typed' in names, 'the wheel has no py.typed')
    expect(any(name.endswith('/LICENSE') for name in names), 'the wheel has no licence')
    library = {str(p.relative_to(CHECKOUT)) for p in (CHECKOUT / 'peftjax').rglob('*.py')}
    lost = sorted(library - set(names))
    expect(not lost, f'the wheel lacks {lost}')
    expect('Project-URL: Changelog, https://' in text, 'the metadata name no URL of the changelog')
    with tarfile.open(sdist) as archive:
        inside = {name.partition('/')[2] for name in archive.getnames()}
    needed = {'LICENSE', 'README.md', 'CHANGELOG.md', 'setup.cfg', 'pyproject.toml'}
    expect(needed <= inside, f'the sdist lacks {sorted(needed - inside)}')
    expect(not any(name.startswith('tests') for name in inside), 'the sdist holds tests')


def check_place() -> None:
    """What is imported is what was installed, and no folder of the checkout can be imported."""
    site = pathlib.Path(sysconfig.get_path('purelib'))
    expect(site in pathlib.Path(peftjax.__file__).parents, f'peftjax is {peftjax.__file__}')
    expect(peftjax.__version__ == metadata.version('peftjax'), 'two versions')
    for name in ('experiments', 'configs', 'tests', 'benchmarks'):
        expect(importlib.util.find_spec(name) is None, f'{name} can be imported')


def check_method(module: Any, params: Any, targets: str) -> None:
    """init, adapt, gradient, merge and a folder of a LoRA."""
    x = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
    model = peftjax.wrap(module, params, (x,))
    transform = peftjax.lora(rank=2, targets=targets)
    adapter, frozen = transform.init(jax.random.key(1), model)
    predict = jax.jit(peftjax.adapt(model, transform))
    before = predict(adapter, frozen, x)
    np.testing.assert_array_equal(before, jax.jit(model.apply)(model.params, x))
    grads = jax.grad(lambda a: (predict(a, frozen, x) ** 2).mean())(adapter)
    trained = jax.tree.map(lambda leaf, grad: leaf - 0.5 * grad, adapter, grads)
    after = predict(trained, frozen, x)
    expect((after**2).mean() < (before**2).mean(), 'a step does not lower the loss')
    merged = transform.merge(trained, frozen)
    np.testing.assert_allclose(model.apply(merged, x), after, rtol=1e-5, atol=1e-6)
    peftjax.save('kept', model, transform, trained, frozen)
    kept = peftjax.restore('kept', model)
    np.testing.assert_array_equal(predict(kept.adapter, kept.frozen, x), after)


def command(*arguments: str) -> str:
    """What `peftjax` prints, run as a shell would."""
    program = pathlib.Path(sysconfig.get_path('scripts')) / 'peftjax'
    return subprocess.run(
        [program, *arguments], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def check_command() -> None:
    expect(f'peftjax {peftjax.__version__}, jax' in command('--version'), 'the version')
    expect('inspect' in command('--help'), 'the help')
    folder = pathlib.Path('bert')
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(BERT))
    expect(
        'layers/attention/query/kernel' in command('inspect', str(folder)), 'the sites of a BERT'
    )


def main() -> None:
    sdist, wheel = sorted(sys.argv[1:], key=lambda name: name.endswith('.whl'))
    check_files(wheel, sdist)
    check_place()
    linen = Linen()
    params = linen.init(jax.random.key(0), jnp.zeros((1, 4)))
    check_method(linen, params, r'(hidden|out)/kernel')
    check_method(Nnx(nnx.Rngs(0)), None, r'(hidden|out)/kernel')
    check_command()
    print(f'The wheel works: {command("--version").strip()}.')


if __name__ == '__main__':
    main()
