"""LoRA on your own table: JSON lines, CSV, TSV, Parquet, or a data set of the hub.

    peftjax train --config configs/own_data.py:task=classification \\
        --model.source FacebookAI/roberta-base --data.source 'reviews/{split}.jsonl' \\
        --workdir runs/own

Data: `{split}` stands for train, validation and test; a single table without it is split 70 : 10 :
    20 by a hash of its rows; 'hf:org/name:config#{split}' is read by the datasets library. Columns,
    class names, lengths and the head are found in the data. `peftjax.train.tasks.registry` lists
    the tasks; if something is found wrongly, name it as `peftjax.train.settings.DataSettings` says.
Expected: nothing, since the data are yours.
"""

from ml_collections import ConfigDict

from configs.args import parse_arg
from configs.base import Config


def get_config(arg: str | None = None) -> ConfigDict:
    """The settings of the run; `arg` is read by `configs.args.parse_arg`.

    task: its name. packing: several texts in a row, for tasks that write. rank: of LoRA.
    """
    choice: Config = parse_arg(arg, task='classification', packing=False, rank=8)
    c: Config = ConfigDict()
    c.task = choice.task
    c.model = ConfigDict({'source': ''})
    c.data = ConfigDict({'source': '', 'packing': choice.packing, 'batch_size': 16})
    c.methods = ('lora',)
    c.lora = ConfigDict({'rank': choice.rank, 'targets': 'all-linear'})
    c.lr, c.warmup, c.clip_norm = 3e-4, 0.1, 1.0
    c.duration = '3 epochs'
    return c
