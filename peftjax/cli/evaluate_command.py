"""`peftjax evaluate`: the scores of a run on a split of its data, or on tasks of lm-eval."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peftjax
from peftjax.cli.parser import Parser, UsageError, settings_of, whole
from peftjax.cli.source import ADAPTER, BASE, RUN, Source, add_which, is_run
from peftjax.evaluation.harness import evaluate_tasks, language_model
from peftjax.train.files import write_whole
from peftjax.train.inference import evaluate
from peftjax.train.run_folder import RunFolder


def add_arguments(parser: Parser) -> None:
    parser.add_argument('base', metavar='run', help=f'{RUN}; with --tasks also {BASE}')
    parser.add_argument('--split', default='test', help='train, validation or test (test)')
    add_which(parser)
    parser.add_argument('--out', metavar='FILE', help='a .json file for the scores')
    harness = parser.add_argument_group("lm-eval (pip install 'peftjax[eval]')")
    harness.add_argument('--tasks', metavar='A,B', help='its tasks, such as hellaswag,arc_easy')
    harness.add_argument('--adapter', help=f'where a base is given: {ADAPTER}')
    harness.add_argument('--include', metavar='DIR', help='a folder with more tasks')
    harness.add_argument(
        '--few-shot', type=whole(0), metavar='N', help='examples before a question'
    )
    harness.add_argument('--limit', type=whole(1), metavar='N', help='questions of each task')
    harness.add_argument('--chat', action='store_true', help='ask through the chat template')
    harness.add_argument(
        '--batch', type=whole(1), default=8, metavar='N', help='rows in a batch (8)'
    )
    harness.add_argument(
        '--max-length', type=whole(1), metavar='N', help='tokens in the longest row'
    )
    parser.add_settings('model', 'data')


def run(arguments: argparse.Namespace) -> None:
    """Prints the scores, one on each line.

    Raises:
        ValueError: the run, the split or a task does not exist.
    """
    if arguments.tasks is None:
        scores = _on_split(arguments)
    else:
        scores = _on_tasks(arguments)
    for name, value in scores.items():
        print(f'{name:40} {value:.4f}' if isinstance(value, float) else f'{name:40} {value}')
    if arguments.out is not None:
        write_whole(Path(arguments.out), json.dumps(scores, indent=2) + '\n')


def _on_split(arguments: argparse.Namespace) -> Mapping[str, Any]:
    folder = open_folder(arguments)
    model = folder.load_model()
    task = folder.load_task(model)
    restored = folder.load_adapter(model, arguments.which)
    return evaluate(model, *restored, task, arguments.split)


def _on_tasks(arguments: argparse.Namespace) -> Mapping[str, Any]:
    source = _source(arguments)
    language = language_model(
        source.model,
        source.transform,
        source.adapter,
        source.frozen,
        batch_size=arguments.batch,
        max_length=arguments.max_length,
    )
    found = evaluate_tasks(
        language,
        arguments.tasks.split(','),
        include=arguments.include,
        few_shot=arguments.few_shot,
        limit=arguments.limit,
        chat=arguments.chat,
    )
    # In lm-eval a name is the metric, a comma, and the filter of the answers.
    return {
        f'{task}/{name.removesuffix(",none")}': value
        for task, scores in found.items()
        for name, value in scores.items()
        if isinstance(value, int | float)
    }


def open_folder(arguments: argparse.Namespace) -> RunFolder:
    """The folder of a run, with the settings that the flags change.

    Raises:
        SettingsError: the folder holds no run, or a setting is unknown.
    """
    folder = RunFolder(arguments.base)
    folder.settings = settings_of(arguments, folder.settings)
    return folder


def _source(arguments: argparse.Namespace) -> Source:
    if is_run(arguments.base):
        if arguments.adapter is not None:
            raise UsageError('--adapter is for a base; a run has its own, see --which')
        folder = open_folder(arguments)
        model = folder.load_model()
        restored = folder.load_adapter(model, arguments.which)
        return Source(model, *restored, folder.settings.model.source)
    if arguments.changes:
        raise UsageError(f'--{next(iter(arguments.changes))} is for a run')
    model = peftjax.load(arguments.base, scan=arguments.adapter is None)
    if arguments.adapter is None:
        method = peftjax.chain()
        return Source(model, method, (), method.freeze(model, ()), arguments.base)
    loaded = peftjax.load_adapter(arguments.adapter, model)
    return Source(model, loaded.transform, loaded.adapter, loaded.frozen, arguments.base)
