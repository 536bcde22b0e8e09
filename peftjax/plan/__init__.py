"""What a training step takes, without the hardware: memory, FLOPs, time, and whether it fits."""

from peftjax.plan.compiled import Compiled, kernels
from peftjax.plan.counting import activation_bytes, draws, flops
from peftjax.plan.estimate import Plan, plan, textbook
from peftjax.plan.machines import MACHINES, Machine, machine_here, mesh_for
from peftjax.plan.table import table

__all__ = [
    'MACHINES',
    'Compiled',
    'Machine',
    'Plan',
    'activation_bytes',
    'draws',
    'flops',
    'kernels',
    'machine_here',
    'mesh_for',
    'plan',
    'table',
    'textbook',
]
