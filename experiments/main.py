"""Fine-tunes an adapter: python -m experiments.main --config configs/lora_sentiment.py --workdir d

It is `peftjax train`, and accepts `--config.lr=1e-3` for `--lr 1e-3`.
"""

from experiments.command_line import run

if __name__ == '__main__':
    run('train')
