"""What a training step of a run takes, from its settings."""

import dataclasses

import peftjax
from peftjax.train.methods import build_transform
from peftjax.train.optimizers import build_optimizer
from peftjax.train.settings import Settings


def plans(
    settings: Settings, machine: str | None = None, topology: str | None = None
) -> dict[str, peftjax.plan.Plan]:
    """The plan of a config's method, and of full fine-tuning beside it.

    Raises:
        ValueError: a method whose arguments data decide, or what `peftjax.plan.estimate` raises.
    """
    if settings.found:
        raise ValueError(
            f'data decide arguments of {", ".join(settings.found)} in this config, so that it '
            'cannot be planned without them'
        )
    # Before anything else uses JAX, which else may give the compiler of the topology up.
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
