"""Plans of a training step, from the settings of a run."""

import dataclasses

import peftjax
from peftjax.train.methods import build_transform
from peftjax.train.optimizers import build_optimizer
from peftjax.train.settings import Settings


def plans(
    settings: Settings, machine: str | None = None, topology: str | None = None
) -> dict[str, peftjax.plan.Plan]:
    """The plan of a config's method, and the plan of full fine-tuning.

    Raises:
        ValueError: arguments of a method depend on data, or what `peftjax.plan.plan` raises.
    """
    if settings.found:
        raise ValueError(
            f'arguments of {", ".join(settings.found)} depend on data in this config; to plan it, '
            "leave out 'found' and give the arguments"
        )
    # This comes first: once JAX was used, it may not find the compiler of the topology.
    mesh = peftjax.plan.mesh_for(topology, **dataclasses.asdict(settings.mesh))
    model = peftjax.load(**settings.model.arguments(), abstract=True)
    size = settings.data.batch_size // settings.accumulate
    inputs = peftjax.abstract_inputs(model, size, max(settings.data.lengths))
    methods = {'+'.join(settings.methods): build_transform(settings), 'full': peftjax.full()}
    return {
        name: peftjax.plan.plan(
            model,
            transform,
            build_optimizer(settings, 1000),
            inputs,
            mesh=mesh,
            machine=peftjax.plan.MACHINES[machine] if machine else None,
            compiled=topology is not None,
        )
        for name, transform in methods.items()
    }
