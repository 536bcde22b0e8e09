"""Estimates memory, FLOPs and time of a config's training step without the hardware.

    python -m experiments.plan --config configs/lora.py:paper --machine v5e --fsdp 8
    python -m experiments.plan --config configs/lora.py --topology v5e:2x4
    python -m experiments.plan --config configs/lora.py --topology H100:8

It is `peftjax plan`. It needs neither weights nor data, only the config.json of the base. The batch
has the size and the greatest length in the config. The table has a row for the method and one for
full fine-tuning.
"""

from experiments.command_line import run

if __name__ == '__main__':
    run('plan')
