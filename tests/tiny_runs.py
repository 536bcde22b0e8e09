"""Runs small enough to test: tiny random models, and text made here."""

import bz2
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from configs import lora_sentiment
from tests.oracle.cases import GOLDEN

WORDS = 'fine grand warm witty dull flat cold weak film plot cast scene a the is was'.split()
SPECIAL = ['[PAD]', '[UNK]', '<|im_start|>', '<|im_end|>']


def checkpoint(folder: Path, golden: str) -> Path:
    """A random model in Hugging Face layout, its head left out, with a tokenizer of whole words."""
    stored = GOLDEN / golden / 'base'
    folder.mkdir()
    shutil.copy(stored / 'config.json', folder)
    weights = load_file(stored / 'model.safetensors')
    headless = {name: each for name, each in weights.items() if 'classifier' not in name}
    save_file(headless, folder / 'model.safetensors')
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / 'tokenizer.json'))
    return folder


def film_reviews(folder: Path) -> Any:
    """configs/lora_sentiment.py with a tiny BERT and reviews whose adjective decides."""
    rng = np.random.default_rng(0)
    lines = ['category,text,movie_name']
    for film in range(40):
        for _ in range(10):
            fresh = rng.random() < 0.5
            words = rng.choice(WORDS[8:], rng.integers(2, 7)).tolist()
            words.insert(rng.integers(len(words)), WORDS[rng.integers(4) + 4 * (not fresh)])
            lines.append(f'{"fresh" if fresh else "rotten"},{" ".join(words)},film {film}')
    with bz2.open(folder / 'reviews.csv.bz2', 'wt', encoding='utf-8') as file:
        file.write('\n'.join(lines) + '\n')
    config: Any = lora_sentiment.get_config()
    config.model.source = str(checkpoint(folder / 'bert', 'tiny_bert'))
    config.data.source = str(folder / 'reviews.csv.bz2')
    config.data.lengths = (8,)  # one shape, one compilation
    config.data.batch_size = config.data.eval_batch_size = 8
    config.lora.dropout = 0.1
    config.lora.rank = 4
    config.duration, config.log_every = '8 steps', '2 steps'
    config.eval_every, config.save_every = '4 steps', '2 steps'
    return config
