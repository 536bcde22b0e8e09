"""The commands by name: what each does, an example, and the module that runs it."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A command.

    Attributes:
        name: on the command line. Its module is `peftjax.cli.<name>_command`, with
            `add_arguments(parser)` and `run(arguments)`.
        summary: what it does.
        example: a command line.
        usage: its arguments in short; empty to have argparse write them from the flags.
    """

    name: str
    summary: str
    example: str
    usage: str = ''


_SETTINGS = '[--config FILE] [--SETTING VALUE ...]'

GROUPS: Mapping[str, tuple[Command, ...]] = {
    'Train': (
        Command(
            'train',
            'train a method on data; leaves the adapter, its scores and a model card in a folder',
            'peftjax train --model.source FacebookAI/roberta-base --data.source reviews.csv '
            '--method "lora(rank=8)" --lr 1e-3 --workdir runs/reviews',
            f'--workdir DIR {_SETTINGS}',
        ),
        Command(
            'sweep',
            'train many runs on one base; runs that differ only in numbers share a program',
            'peftjax sweep --config configs/lora_sentiment.py --sweep rank --workdir runs/rank',
            '--config FILE --sweep NAME --workdir DIR [--SETTING VALUE ...]',
        ),
        Command(
            'report',
            'write the report of a sweep again',
            'peftjax report runs/rank',
        ),
        Command(
            'reproduce',
            'repeat a published result, with all its seeds, and print both numbers',
            'peftjax reproduce lora.rte --workdir runs/papers',
        ),
        Command(
            'plan',
            'estimate memory, FLOPs and time of a training step, and whether it fits; needs '
            'neither weights nor devices',
            'peftjax plan huggyllama/llama-7b --method "lora(rank=8)" --method "full()" '
            '--dtype bfloat16 --remat full --batch 8 --length 2048 --fsdp 8 --machine v5e',
        ),
    ),
    'Use': (
        Command(
            'predict',
            'predict each row of a table with a trained model',
            'peftjax predict runs/reviews new.csv --out predictions.csv',
        ),
        Command(
            'evaluate',
            'score a trained model on a split of its data, or on tasks of lm-eval',
            'peftjax evaluate runs/reviews --split test',
        ),
        Command(
            'generate',
            'let a decoder answer, or continue a text',
            "peftjax generate HuggingFaceTB/SmolLM2-135M-Instruct --prompt 'What is an adapter?'",
        ),
    ),
    'Look at, merge and convert': (
        Command(
            'inspect',
            'list what methods can target in a checkpoint, or what an adapter trains',
            'peftjax inspect HuggingFaceTB/SmolLM2-135M-Instruct --adapter my_adapter',
        ),
        Command(
            'merge',
            'merge adapters into their base, and write the checkpoint',
            'peftjax merge HuggingFaceTB/SmolLM2-135M-Instruct my_adapter merged',
        ),
        Command(
            'convert',
            'write an adapter in the format of another library',
            'peftjax convert google-bert/bert-base-uncased my_adapter hub_adapter --to adapterhub',
        ),
        Command(
            'export',
            'write a LoRA as a GGUF adapter, for llama.cpp',
            'peftjax export HuggingFaceTB/SmolLM2-135M-Instruct my_adapter my_adapter.gguf',
        ),
    ),
}
"""The commands as the help lists them."""

COMMANDS: Mapping[str, Command] = {
    command.name: command for commands in GROUPS.values() for command in commands
}
"""All commands by name."""


def overview() -> str:
    """What `peftjax --help` prints."""
    lines = [
        f'example: {COMMANDS["train"].example}',
        '',
        'usage: peftjax COMMAND ...',
        'Train adapters, use them, and take them to other libraries.',
    ]
    for title, commands in GROUPS.items():
        lines += ['', f'{title}:']
        lines += [f'  {each.name:10} {each.summary}' for each in commands]
    lines += [
        '',
        'peftjax COMMAND --help lists the flags of a command; peftjax --version prints versions.',
    ]
    return '\n'.join(lines)


def load_command(command: Command) -> Any:
    """The module of a command.

    Raises:
        ValueError: it needs a library that is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(f'peftjax.cli.{command.name}_command')
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if missing.partition('.')[0] == 'peftjax':
            raise
        raise ValueError(
            f"needs {missing}, which is not installed: pip install 'peftjax[train]'"
        ) from error
