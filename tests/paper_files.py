"""Published data sets in miniature, in their layouts, and tiny models of the families of papers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from peftjax.train.readers.glue import GLUE, SUPERGLUE
from peftjax.train.readers.text import COMMONSENSE
from peftjax.train.settings import DataSettings
from tests.oracle.cases import GOLDEN

WORDS = (
    'a the of is was and not film plot cast good bad warm cold yes no true false one two'.split()
)
SPECIAL = ['[PAD]', '[UNK]', '[BOS]', '[EOS]']
Rows = list[dict[str, Any]]

# A golden model, and what becomes of its sizes.
_WIDE = {16: 256, 24: 512, 8: 256, 32: 64}
_NARROW = {16: 64, 24: 96, 48: 192, 32: 64}
FAMILIES: Mapping[str, tuple[str, Mapping[int, int], Mapping[str, int]]] = {
    'roberta': (
        'tiny_roberta',
        _NARROW,
        {'hidden_size': 64, 'intermediate_size': 96, 'vocab_size': 64},
    ),
    'bert': ('tiny_bert', _NARROW, {'hidden_size': 64, 'intermediate_size': 96, 'vocab_size': 64}),
    'gpt2': (
        'tiny_gpt2',
        {**_NARROW, 64: 256},
        {'n_embd': 64, 'n_inner': 96, 'vocab_size': 64, 'n_positions': 256},
    ),
    't5': ('tiny_t5_gated', _NARROW, {'d_model': 64, 'd_ff': 96, 'd_kv': 24, 'vocab_size': 64}),
    **{
        family: (
            f'tiny_{family}',
            _WIDE,
            {
                **{'hidden_size': 256, 'intermediate_size': 512, 'vocab_size': 64},
                **{'num_key_value_heads': 4, 'head_dim': 64},
            },
        )
        for family in ('llama', 'mistral')
    },
}


def checkpoint(folder: Path, family: str) -> Path:
    """A random model in Hugging Face layout, without a head, with a tokenizer of whole words."""
    golden, sizes, config = FAMILIES[family]
    stored, rng = GOLDEN / golden / 'base', np.random.default_rng(0)
    folder.mkdir(parents=True)
    settings = json.loads((stored / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**settings, **config}))
    weights = {
        name: (
            (1.0 if 'norm' in name.lower() and name.endswith('weight') else 0.0)
            + 0.1 * rng.normal(size=[sizes.get(size, size) for size in each.shape])
        ).astype(np.float32)
        for name, each in load_file(stored / 'model.safetensors').items()
        if 'classifier' not in name
    }
    save_file(weights, folder / 'model.safetensors')
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / 'tokenizer.json'))
    special = {'bos_token': '[BOS]', 'eos_token': '[EOS]', 'pad_token': '[PAD]'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(special))
    return folder


class Words:
    """Draws sentences."""

    def __init__(self, seed: int = 0):
        self._rng = np.random.default_rng(seed)

    def __call__(self, count: int = 5) -> str:
        return ' '.join(self._rng.choice(WORDS, count))


def rows_of(reader: str, count: int = 12) -> Rows:
    """Rows with the columns that the data set has on the hub, and one that nobody reads."""
    words = Words(len(reader))
    name = reader.removesuffix('_halves').removesuffix('_words').removesuffix('_choices')
    kind, _, task = name.partition('_')
    tasks = {'glue': GLUE, 'superglue': SUPERGLUE}.get(kind, {})
    made: Rows = []
    for number in range(count):
        if task in tasks:
            texts, classes = tasks[task].texts, tasks[task].classes
            label = number % len(classes) if classes else 0.5 * (number % 10)
            made.append({**{each: words() for each in texts}, 'label': label, 'idx': number})
        else:
            made.append({**_ROWS[name](words, number), 'id': number})
    return made


_ROWS = {
    'e2e': lambda words, number: {
        'meaning_representation': f'name[place {number // 2}], eatType[pub]',
        'human_reference': words(),
    },
    'dart': lambda words, number: {
        'tripleset': [[words(1), 'is', words(1)], [words(1), 'has', words(1)]],
        'annotations': {'source': ['made'], 'text': [words(), words()]},
    },
    'xsum': lambda words, number: {'document': words(12), 'summary': words(4)},
    'gsm8k': lambda words, number: {'question': words(8), 'answer': f'{words()} #### {number}'},
    'metamathqa': lambda words, number: {
        'query': words(8),
        'response': f'{words()} The answer is: {number}',
    },
    'commonsense_170k': lambda words, number: {
        'instruction': words(8),
        'input': '',
        'output': f'the correct answer is {("true", "false")[number % 2]}',
        'answer': ('true', 'false')[number % 2],
    },
    'alpaca': lambda words, number: {
        'instruction': words(),
        'input': '' if number % 2 else words(),
        'output': words(),
    },
    'magicoder': lambda words, number: {'instruction': words(8), 'response': words()},
}


def write(folder: Path, reader: str) -> dict[str, Any]:
    """Writes a data set as its hub has it, or as its authors distribute it; gives its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    if reader == 'commonsense_170k':
        files = {name: folder / 'dataset' / name / 'test.json' for name in COMMONSENSE}
        files |= {'train': folder / 'ft-training_set' / 'commonsense_170k.json'}
        for file in files.values():
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(rows_of(reader)))
        return {'data.source': str(folder)}
    splits = ['train', 'validation', 'test']
    if reader.startswith('glue_mnli'):
        splits = ['train', 'validation_matched', 'validation_mismatched']
    for split in splits:
        lines(folder / f'{split}.jsonl', rows_of(reader))
    if reader == 'metamathqa':
        lines(folder / 'gsm8k.jsonl', rows_of('gsm8k'))
        places = {'test': str(folder / 'gsm8k.jsonl')}
        return {'data.source': str(folder / 'train.jsonl'), 'data.splits': places}
    if reader in ('alpaca', 'magicoder'):
        return {'data.source': str(folder / 'train.jsonl')}
    return {'data.source': str(folder / '{split}.jsonl')}


def data_settings(folder: Path, reader: str) -> DataSettings:
    """Writes a data set; gives the settings that read it."""
    found = write(folder, reader)
    return DataSettings(
        source=found['data.source'], splits=found.get('data.splits', {}), reader=reader
    )


def lines(path: Path, rows: Rows) -> None:
    """JSON lines."""
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
