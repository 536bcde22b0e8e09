"""What training adds to a method: steps, optimisers, losses and starts from data."""

from peftjax.training.adalora import AllocationState, adalora_allocation
from peftjax.training.compiled import Compiled, kernels
from peftjax.training.counting import activation_bytes, draws, flops
from peftjax.training.eva import Eva, eva
from peftjax.training.fisher import fisher
from peftjax.training.gptq import gptq
from peftjax.training.lora_plus import lora_plus, lora_plus_labels
from peftjax.training.losses import length_normalised_loss, unlikelihood_loss
from peftjax.training.machines import MACHINES, Machine, machine_here, mesh_for
from peftjax.training.plan import Plan, plan, textbook
from peftjax.training.plan_table import table
from peftjax.training.step import LossFunction, TrainState, init_state, make_train_step
from peftjax.training.vectorize import program_key, row, share, stack

__all__ = [
    'MACHINES',
    'AllocationState',
    'Compiled',
    'Eva',
    'LossFunction',
    'Machine',
    'Plan',
    'TrainState',
    'activation_bytes',
    'adalora_allocation',
    'draws',
    'eva',
    'fisher',
    'flops',
    'gptq',
    'init_state',
    'kernels',
    'length_normalised_loss',
    'lora_plus',
    'lora_plus_labels',
    'machine_here',
    'make_train_step',
    'mesh_for',
    'plan',
    'program_key',
    'row',
    'share',
    'stack',
    'table',
    'textbook',
    'unlikelihood_loss',
]
