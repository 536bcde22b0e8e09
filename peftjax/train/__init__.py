"""Training: steps, optimisers, losses, starts from data, and the loop around them."""

from peftjax.train.adalora import AllocationState, adalora_allocation
from peftjax.train.eva import Eva, eva
from peftjax.train.fisher import fisher
from peftjax.train.gptq import gptq
from peftjax.train.lora_plus import lora_plus, lora_plus_labels
from peftjax.train.losses.choices import length_normalised_loss, unlikelihood_loss
from peftjax.train.step import LossFunction, TrainState, init_state, make_train_step
from peftjax.train.vectorize import program_key, row, share, stack

__all__ = [
    'AllocationState',
    'Eva',
    'LossFunction',
    'TrainState',
    'adalora_allocation',
    'eva',
    'fisher',
    'gptq',
    'init_state',
    'length_normalised_loss',
    'lora_plus',
    'lora_plus_labels',
    'make_train_step',
    'program_key',
    'row',
    'share',
    'stack',
    'unlikelihood_loss',
]
