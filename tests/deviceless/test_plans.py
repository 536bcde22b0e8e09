"""Plans for GPUs that are elsewhere, from the command line and from Python."""

import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import peftjax
from peftjax import testing
from peftjax.plan import MACHINES, mesh_for, plan

pytestmark = pytest.mark.deviceless
ROOT = Path(__file__).parents[2]
X = {'x': jax.ShapeDtypeStruct((16, 4), jnp.float32)}


@pytest.mark.parametrize('name', ['A100', 'H100', 'H200', 'B200'])
def test_every_gpu_compiles_and_brings_its_data_sheet(name):
    found = _plan(mesh_for(f'{name}:1'))
    assert found.machine == MACHINES[name]
    assert found.compiled is not None and found.fits
    arguments = found.weights + found.adapter + found.optimizer
    assert arguments <= found.compiled.arguments <= found.compiled.peak == found.total


def test_gpus_of_several_hosts_are_one_mesh():
    mesh = mesh_for('H100:2x8', data=2, fsdp=8)
    assert mesh is not None and mesh.size == 16
    assert 'all-reduce' in _kernels(_plan(mesh))
    with pytest.raises(ValueError, match='there are 16'):
        mesh_for('H100:2x8', fsdp=8)


def test_another_machine_than_the_one_compiled_for_is_refused():
    with pytest.raises(ValueError, match="compiled for 'NVIDIA H100 80GB HBM3'"):
        _plan(mesh_for('H100:1'), machine=MACHINES['H200'])
    half = MACHINES['H100']._replace(memory=40e9)
    assert _plan(mesh_for('H100:1'), machine=half).machine == half


def test_the_largest_batch_by_the_compiler_fits_and_a_larger_one_does_not():
    mesh, machine = mesh_for('H100:8'), MACHINES['H100']._replace(memory=1e6)
    largest = _plan(mesh, machine=machine).largest_batch
    assert largest is not None and largest > X['x'].shape[0]
    for batch, fits in ((largest, True), (8 * math.ceil(1.2 * largest / 8), False)):
        inputs = {'x': jax.ShapeDtypeStruct((batch, 4), jnp.float32)}
        assert _plan(mesh, inputs, machine=machine).fits is fits


def test_the_command_asks_the_compiler_in_a_process_of_its_own():
    flags = ['--batch', '2', '--length', '64', '--dtype', 'bfloat16', '--topology', 'H100:1']
    methods = ['--method', "lora(rank=2, targets=r'.*/q_proj')"]
    environment = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'}
    done = subprocess.run(
        [sys.executable, '-m', 'peftjax.cli', 'plan', '50M', *flags, *methods],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, head, row, names = done.stdout.splitlines()
    assert 'scratch' in head and 'largest batch' in head and ' yes ' in row
    assert '__cudnn$fmhaSoftmaxBackward' in names


def _plan(mesh, inputs=None, **options):
    mlp = testing.tiny_mlp()
    tx = peftjax.lora(rank=2, targets='hidden')
    options |= {'mesh': mesh, 'compiled': True, 'loss': lambda y: (y**2).mean()}
    return plan(mlp, tx, optax.adamw(1e-3), inputs or X, **options)


def _kernels(found):
    assert found.compiled is not None
    return found.compiled.kernels
