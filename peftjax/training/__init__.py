"""Pure step builders."""

from peftjax.training.step import LossFunction, TrainState, init_state, make_train_step

__all__ = ['LossFunction', 'TrainState', 'init_state', 'make_train_step']
