"""Fine-tunes an adapter: python -m experiments.main --config configs/lora_sentiment.py --workdir d

It is `peftjax train`, where `--config.lr=1e-3` may stand for `--lr 1e-3`.
"""

from experiments.command_line import run

if __name__ == '__main__':
    run('train')
