"""Training: steps, optimisers, losses, starts from data, tasks, and the loop around them."""

import importlib
from typing import TYPE_CHECKING, Any

from peftjax.core.vectorize import program_key, share, stack, unstack
from peftjax.train.adalora import AllocationState, adalora_allocation
from peftjax.train.eva import Eva, eva
from peftjax.train.fisher import fisher
from peftjax.train.gptq import gptq
from peftjax.train.lora_fa import lora_fa_projection
from peftjax.train.lora_plus import lora_plus, lora_plus_labels
from peftjax.train.losses.choices import length_normalised_loss, unlikelihood_loss
from peftjax.train.moments import Moments, moments
from peftjax.train.step import LossFunction, TrainState, init_state, make_train_step

# Names that need the extra `train`, with the modules that define them.
_LATE = {
    'Fit': 'peftjax.train.fitting',
    'fit': 'peftjax.train.fitting',
    'train': 'peftjax.train.fitting',
    'evaluate': 'peftjax.train.inference',
    'predict': 'peftjax.train.inference',
    'RunFolder': 'peftjax.train.run_folder',
    'Settings': 'peftjax.train.settings',
    'SettingsError': 'peftjax.train.settings',
    'read_settings': 'peftjax.train.settings',
    'Forward': 'peftjax.train.task',
    'Metric': 'peftjax.train.task',
    'Task': 'peftjax.train.task',
    'Trained': 'peftjax.train.task',
}

if TYPE_CHECKING:
    from peftjax.train.fitting import Fit, fit, train
    from peftjax.train.inference import evaluate, predict
    from peftjax.train.run_folder import RunFolder
    from peftjax.train.settings import Settings, SettingsError, read_settings
    from peftjax.train.task import Forward, Metric, Task, Trained
else:  # A type checker that saw this function would believe that every name exists.

    def __getattr__(name: str) -> Any:
        if name not in _LATE:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        try:
            value = getattr(importlib.import_module(_LATE[name]), name)
        except ModuleNotFoundError as error:
            raise ImportError(
                f'peftjax.train.{name} needs {error.name}, which is not installed: '
                "pip install 'peftjax[train]'"
            ) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


__all__ = [
    'AllocationState',
    'Eva',
    'Fit',
    'Forward',
    'LossFunction',
    'Metric',
    'Moments',
    'RunFolder',
    'Settings',
    'SettingsError',
    'Task',
    'TrainState',
    'Trained',
    'adalora_allocation',
    'eva',
    'evaluate',
    'fisher',
    'fit',
    'gptq',
    'init_state',
    'length_normalised_loss',
    'lora_fa_projection',
    'lora_plus',
    'lora_plus_labels',
    'make_train_step',
    'moments',
    'predict',
    'program_key',
    'read_settings',
    'share',
    'stack',
    'train',
    'unlikelihood_loss',
    'unstack',
]
