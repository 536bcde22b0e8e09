"""Estimates memory, FLOPs and time of a config's training step without the hardware.

    python -m experiments.plan --config configs/lora.py:paper --machine v5e --fsdp 8
    python -m experiments.plan --config configs/lora.py --topology v5e:2x4
    python -m experiments.plan --config configs/lora.py --topology H100:8

Weights and data are not needed: of the base its config.json is read, a batch has the config's size
and its greatest length. The row of full fine-tuning stands beside the method's. `peftjax plan` does
the same for a checkpoint and methods named on the command line.
"""

import dataclasses
import sys
from collections.abc import Sequence

from absl import app, flags

import peftjax
from experiments.command_line import CONFIG, read_flags
from peftjax.train.build import build_transform
from peftjax.train.optimizers import build_optimizer
from peftjax.train.settings import Settings, read_settings

_MACHINE = flags.DEFINE_enum(
    'machine', None, list(peftjax.plan.MACHINES), 'Each device; else that of --topology.'
)
_TOPOLOGY = flags.DEFINE_string(
    'topology',
    None,
    "Ask the compiler of a TPU slice, v5e:2x4, or of GPUs, H100:8; 'here': of the device here.",
)


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


def main(argv: Sequence[str]) -> None:
    del argv
    try:
        print(
            peftjax.plan.table(plans(read_settings(CONFIG.value), _MACHINE.value, _TOPOLOGY.value))
        )
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == '__main__':
    app.run(main, flags_parser=read_flags)
