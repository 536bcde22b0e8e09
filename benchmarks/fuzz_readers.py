"""The readers that `benchmarks.fuzz` tries, each with valid files."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet

import peftjax
from peftjax.train.checkpoints import Checkpoints, CheckpointsError
from peftjax.train.data.table_files import read_table
from peftjax.train.redo import damage
from peftjax.train.settings import DataSettings
from peftjax.train.step import TrainState
from tests import tiny_runs
from tests.checkpoint_files import golden, write_folder, write_gguf

TARGETS = r'layers_\d+/self_attn/(q|v)_proj'


class Reader(NamedTuple):
    """A reader.

    Attributes:
        name: of the reader.
        files: a folder that it can read.
        read: reads a folder; the arrays in its result are checked.
        weight: how often it is tried, relative to the others.
    """

    name: str
    files: pathlib.Path
    read: Callable[[pathlib.Path], Any]
    weight: float = 1.0


def readers(folder: pathlib.Path) -> list[Reader]:
    """All readers, with files made in a folder."""
    base = _base(folder / 'base')
    model = peftjax.load(base, scan=False)
    return [
        Reader('base', base, lambda each: peftjax.load(each).params, 2.0),
        *_other_bases(folder),
        *_adapters(folder, model),
        *_tables(folder),
        _checkpoints(folder / 'checkpoints'),
        _run(folder / 'run'),
    ]


def _base(folder: pathlib.Path) -> pathlib.Path:
    tiny_runs.checkpoint(folder, 'tiny_llama')
    settings = {'eos_token': '<|im_end|>', 'chat_template': '{{ messages }}'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
    (folder / 'special_tokens_map.json').write_text(json.dumps({'bos_token': '<|im_start|>'}))
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': [3]}))
    (folder / 'chat_template.jinja').write_text('{{ messages }}')
    return folder


def _other_bases(folder: pathlib.Path) -> list[Reader]:
    config, weights, _, _ = golden('llama')
    write_folder(folder / 'sharded', config, weights, shards=2)
    (folder / 'gguf').mkdir()
    write_gguf(folder / 'gguf/model.gguf', config, weights)
    bert = tiny_runs.checkpoint(folder / 'bert', 'tiny_bert')
    return [
        Reader('sharded', folder / 'sharded', lambda each: peftjax.load(each).params),
        Reader('gguf', folder / 'gguf', lambda each: peftjax.load(each / 'model.gguf').params, 4.0),
        Reader('bert', bert, lambda each: peftjax.load(each).params),
    ]


def _adapters(folder: pathlib.Path, model: peftjax.Model) -> list[Reader]:
    transform = peftjax.lora(
        rank=2, targets=TARGETS, rank_pattern={r'layers_0/.*': 1}, alpha_pattern={r'.*q_proj': 3}
    )
    adapter, _ = transform.init(jax.random.key(0), model)
    peftjax.save_adapter(folder / 'peft', model, transform, adapter, base_model='x')
    hub_transform = peftjax.lora(rank=2, targets=TARGETS)
    hub_adapter, _ = hub_transform.init(jax.random.key(0), model)
    peftjax.save_adapter(folder / 'hub', model, hub_transform, hub_adapter, form='adapterhub')
    whole = peftjax.chain(
        peftjax.lora(rank=2, targets=TARGETS, init='pissa'),
        peftjax.ia3(targets=r'layers_\d+/self_attn/k_proj'),
    )
    peftjax.save(folder / 'saved', model, whole, *whole.init(jax.random.key(0), model))
    return [
        Reader(
            'peft', folder / 'peft', lambda each: peftjax.load_adapter(each, model).adapter, 4.0
        ),
        Reader(
            'adapterhub', folder / 'hub', lambda each: peftjax.load_adapter(each, model).adapter
        ),
        Reader('saved', folder / 'saved', lambda each: peftjax.restore(each, model).adapter, 2.0),
    ]


def _tables(folder: pathlib.Path) -> list[Reader]:
    rows = [{'text': f'fine "film", {n}\nand é', 'label': str(n % 2)} for n in range(12)]
    made = []
    for ending in ('.jsonl', '.csv', '.tsv', '.parquet'):
        place = folder / ending[1:]
        place.mkdir()
        file = place / f'table{ending}'
        if ending == '.parquet':
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        elif ending == '.jsonl':
            file.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
        else:
            mark = {'.csv': ',', '.tsv': '\t'}[ending]
            lines = [f'text{mark}label', *(f'film {n}{mark}{n % 2}' for n in range(12))]
            file.write_text('\n'.join(lines), encoding='utf-8')

        def read(each: pathlib.Path, name: str = file.name) -> Any:
            source = str(each / name)
            return list(read_table(source, DataSettings(), ('text', 'label'), empty=False)) and ()

        made.append(Reader(ending[1:], place, read, 4.0))
    return made


def _state(step: int) -> TrainState:
    return TrainState(
        step=jnp.int32(step),
        adapter={'a': jnp.arange(6.0) + step},
        opt_state=(jnp.ones(3) * step,),
        key=jax.random.key(step),
    )


def _opened(folder: pathlib.Path) -> Checkpoints:
    return Checkpoints(folder, {'lr': 1e-3}, 'base', say=lambda text: None)


def _checkpoints(folder: pathlib.Path) -> Reader:
    """Two checkpoints; the result must have the bits of one of them."""
    checkpoints = _opened(folder)
    for step in (4, 8):
        checkpoints.save(_state(step), {'data': {'next_index': step}})
    checkpoints.close()

    def read(each: pathlib.Path) -> Any:
        opened = _opened(each)
        try:
            state, about = opened.restore(_state(0))
        except CheckpointsError as error:
            raise ValueError(str(error)) from error
        finally:
            opened.close()
        step = int(state.step)
        same = jax.tree.map(
            lambda one, other: bool(jnp.array_equal(one, other)), state, _state(step)
        )
        if about != {'data': {'next_index': step}} or not all(jax.tree.leaves(same)):
            raise AssertionError(f'step {step} is not what was saved')
        return state.adapter

    return Reader('checkpoints', folder, read, 0.1)


def _run(folder: pathlib.Path) -> Reader:
    """The settings, the result and the log in the folder of a run."""
    settings = peftjax.train.Settings().change({'model.source': 'x', 'data.source': 'y'})
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(settings.to_dict()))
    result = {'status': 'done', 'steps': 4, 'adapter': 'no', 'test/loss': 0.5}
    (folder / 'result.json').write_text(json.dumps(result))
    lines = [{'step': n, 'train/loss': 1.0 / n} for n in range(1, 5)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))

    def read(each: pathlib.Path) -> Any:
        opened = peftjax.train.RunFolder(each)
        if found := damage(each):
            raise ValueError(found)
        return [np.float32(len(opened.result))]

    return Reader('run', folder, read, 2.0)
