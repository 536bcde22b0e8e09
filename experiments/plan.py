"""Estimates memory, FLOPs and time of a config's training step without the hardware.

    python -m experiments.plan --config configs/lora.py:paper --machine v5e --fsdp 8
    python -m experiments.plan --config configs/lora.py --topology v5e:2x4
    python -m experiments.plan --config configs/lora.py --topology H100:8

It is `peftjax plan`. Weights and data are not needed: of the base its config.json is read, a batch
has the config's size and its greatest length. Full fine-tuning is a row beside the method's.
"""

from experiments.command_line import run

if __name__ == '__main__':
    run('plan')
