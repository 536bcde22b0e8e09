"""Published data sets whose answers are texts: data to text, summaries, problems, instructions.

Rows have the columns prompt and answer, in the data set's own format; or text and answer, for an
encoder with a decoder. The columns of the tables are those of the hub.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from peftjax.train.data.table_files import Record
from peftjax.train.readers.layout import Layout

_ALL = {name: name for name in ('train', 'validation', 'test')}
_TRAIN = {'train': 'train'}

# The test sets of LLM-Adapters after tuning on commonsense-170k, in the order of its tables.
COMMONSENSE = (
    *('boolq', 'piqa', 'social_i_qa', 'hellaswag'),
    *('winogrande', 'ARC-Easy', 'ARC-Challenge', 'openbookqa'),
)

_ALPACA = (
    'Below is an instruction that describes a task{context}. Write a response that appropriately '
    'completes the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n'
)


def alpaca_prompt(instruction: str, context: str = '') -> str:
    """The prompt of Stanford Alpaca (Taori et al., 2023), with or without an input.

    Example:
        >>> alpaca_prompt('Add.', '1 + 2').splitlines()[-4:]
        ['### Input:', '1 + 2', '', '### Response:']
    """
    paired = ', paired with an input that provides further context' if context else ''
    given = f'### Input:\n{context}\n\n' if context else ''
    return _ALPACA.format(context=paired, instruction=instruction, input=given)


def _e2e(row: Record) -> Record:
    """A meaning representation as LoRA's authors write it: 'name : Zizzi | eatType : pub'."""
    fields = re.findall(r'([^,\[\]]+)\[([^\]]*)\]', row['meaning_representation'])
    prompt = ' | '.join(f'{name.strip()} : {value}' for name, value in fields)
    return {'prompt': prompt, 'answer': f' {row["human_reference"]}'}


def _e2e_official(folder: Path, split: str) -> Iterator[Record]:
    """The challenge's own files, with the columns mr and ref."""
    names = {'train': 'trainset.csv', 'validation': 'devset.csv', 'test': 'testset_w_refs.csv'}
    path = folder / names[split]
    if not path.is_file():
        raise ValueError(f'{path} does not exist')
    with path.open(encoding='utf-8', newline='') as file:
        for number, row in enumerate(csv.DictReader(file), start=1):
            if row.get('mr') is None or row.get('ref') is None:
                raise ValueError(f'{path}, row {number} has no mr or no ref')
            yield {'meaning_representation': row['mr'], 'human_reference': row['ref']}


def _dart(row: Record) -> Record:
    """Triples joined as LoRA's authors do, and the first of the texts: 'a : is : b | ...'."""
    prompt = ' | '.join(' : '.join(map(str, triple)) for triple in row['tripleset'])
    return {'prompt': prompt, 'answer': f' {row["annotations"]["text"][0]}'}


def _xsum(row: Record) -> Record:
    return {'text': row['document'], 'answer': row['summary']}


def _worked(question: str) -> str:
    """The prompt of Hugging Face's comparison of methods on MetaMathQA."""
    return f'Question: {question} Think step by step.\nAnswer:'


def _problem(row: Record) -> Record:
    return {'prompt': _worked(row['question']), 'answer': f' {row["answer"]}'}


def _metamath(row: Record) -> Record:
    return {'prompt': _worked(row['query']), 'answer': f' {row["response"]}'}


def _instruction(row: Record) -> Record:
    """Alpaca's columns; an empty input counts as none."""
    return {'prompt': alpaca_prompt(row['instruction'], row['input']), 'answer': row['output']}


def _magicoder(row: Record) -> Record:
    return {'prompt': alpaca_prompt(row['instruction']), 'answer': row['response']}


def _json_array(file_of: Callable[[str], str]) -> Callable[[Path, str], Iterator[Record]]:
    """Reads files that hold one array of objects, as LLM-Adapters distribute them."""

    def rows(folder: Path, split: str) -> Iterator[Record]:
        path = folder / file_of(split)
        if not path.is_file():
            raise ValueError(f'{path} does not exist')
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f'{path} is not JSON: {error}') from None
        if not isinstance(content, list):
            raise ValueError(f'{path} holds no array of examples')
        for number, row in enumerate(content, start=1):
            names = ('instruction', 'output')
            if not isinstance(row, dict) or not all(isinstance(row.get(n), str) for n in names):
                raise ValueError(f'{path}, example {number} has no instruction or no output')
            yield {'input': '', **row}

    return rows


def _commonsense_file(split: str) -> str:
    train = 'ft-training_set/commonsense_170k.json'
    return train if split == 'train' else f'dataset/{split}/test.json'


_GSM8K = Layout(
    columns=('question', 'answer'), record=_problem, splits={'train': 'train', 'test': 'test'}
)

TEXTS: Mapping[str, Layout] = {
    'e2e': Layout(
        columns=('meaning_representation', 'human_reference'),
        record=_e2e,
        splits=_ALL,
        official=_e2e_official,
        grouped='prompt',
    ),
    'dart': Layout(
        columns=('tripleset', 'annotations'), record=_dart, splits=_ALL, grouped='prompt'
    ),
    'xsum': Layout(columns=('document', 'summary'), record=_xsum, splits=_ALL),
    'gsm8k': _GSM8K,
    'metamathqa': Layout(
        columns=('query', 'response'),
        record=_metamath,
        splits=_TRAIN,
        elsewhere={'test': _GSM8K},
        held_out=50,
    ),
    'commonsense_170k': Layout(
        columns=('instruction', 'input', 'output'),
        record=_instruction,
        splits={'train': 'train', **{f'test_{name}': name for name in COMMONSENSE}},
        official=_json_array(_commonsense_file),
        held_out=120,
    ),
    'alpaca': Layout(
        columns=('instruction', 'input', 'output'), record=_instruction, splits=_TRAIN, held_out=120
    ),
    'magicoder': Layout(
        columns=('instruction', 'response'), record=_magicoder, splits=_TRAIN, held_out=120
    ),
}
