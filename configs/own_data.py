"""LoRA on a table of one's own: JSON lines, CSV, Parquet, or a data set of the Hugging Face hub.

    python -m experiments.main --config configs/own_data.py:kind=classification \\
        --config.model.source=FacebookAI/roberta-base --config.model.num_labels=2 \\
        --config.data.source='reviews/{split}.jsonl' --workdir runs/own

Data: `{split}` stands for train, validation and test; a single table without it is split 70 : 10 :
    20 by a hash of its rows; 'hf:org/name:config#{split}' is read by the datasets library.
Expected: nothing, since the data are yours; `peftjax.train.tasks.own_data` says what a row becomes.
"""

from ml_collections import ConfigDict

from configs import base
from configs.args import parse_arg

_COLUMNS = {
    'classification': {'text': 'text', 'label': 'label'},
    'pairs': {'text': 'sentence1', 'second': 'sentence2', 'label': 'label'},
    'instructions': {'prompt': 'prompt', 'answer': 'answer'},
    'messages': {'messages': 'messages'},
    'seq2seq': {'text': 'source', 'answer': 'target'},
    'images': {'image': 'image', 'label': 'label'},
}
_TASKS: dict[str, str] = {'pairs': 'classification', 'messages': 'instructions'}
_HEADS = {'instructions': 'causal_lm', 'seq2seq': 'seq2seq_lm'}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` is read by `configs.args.parse_arg`.

    kind: classification, pairs (of texts), instructions (prompt and answer), messages (whole
    conversations), seq2seq, images. packing: several instructions to a row. rank: of LoRA.

    Raises:
        ValueError: another kind.
    """
    choice: base.Config = parse_arg(arg, kind='classification', packing=False, rank=8)
    if choice.kind not in _COLUMNS:
        raise ValueError(f'no kind {choice.kind!r}; it is one of {", ".join(_COLUMNS)}')
    kind: str = choice.kind
    task = _TASKS.get(kind, kind)
    writes = task in _HEADS
    head = _HEADS.get(task, 'classification')
    c = base.text('', task, 3e-4, 16, '3 epochs', (64, 128, 256, 512), head)
    c.data.source = ''  # the table, or the tables by {split}
    c.data.columns = ConfigDict(_COLUMNS[choice.kind])
    c.data.packing = choice.packing
    if task == 'seq2seq':
        c.data.decoder_start_id = 0  # what the decoder's text begins with; T5's padding
    if not writes:
        c.model.num_labels = 2
        c.data.num_labels = c.model.get_ref('num_labels')
        c.data.labels = ()  # the class names in order, where the table holds names
    if task == 'images':
        c.data.lengths = ()
        c.data.image = ConfigDict({'size': 224, 'mean': (0.5,) * 3, 'std': (0.5,) * 3})
    c.warmup, c.clip_norm = 0.1, 1.0
    return base.methods(
        c, head=not writes, lora={'rank': choice.rank, 'targets': r'.*layers(_\d+)?/.*/kernel'}
    )
