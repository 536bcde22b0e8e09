"""Trackers, which write the numbers of a run.

`metrics.jsonl` is always written. Further trackers are chosen by name: tensorboard, wandb, mlflow,
trackio, or a function of your own as 'package.module:function'.
"""
