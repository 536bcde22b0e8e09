"""Prompts and prefixes of Hugging Face's peft, in and out."""

import re
from typing import Any

import numpy as np

from peftjax.core.entries import Entry
from peftjax.core.model import Model
from peftjax.core.paths import exactly
from peftjax.core.roles import Roles
from peftjax.interop.errors import CheckpointError
from peftjax.methods.prompts.p_tuning import export_prompt
from peftjax.methods.prompts.prefix_tuning import export_prefix, prefix_tuning
from peftjax.methods.prompts.prompt_tuning import prompt_tuning


def embedding_path(model: Model) -> str:
    """The word embedding of a model of ours."""
    roles = model.roles or Roles()
    return next(path for path in model.sites.modules if roles.matches('embedding', path))


def cores(model: Model) -> list[str]:
    """The attention cores of a model: one for scanned layers, or one for each, lowest first."""
    found = [path for path, site in model.sites.modules.items() if site.attention]
    return sorted(found, key=lambda path: int((re.search(r'_(\d+)/', path) or [0, 0])[1]))


def _order(layers: int, held: int, submodules: int) -> np.ndarray:
    """Which parts of a row are the key and the value of each layer, int [layers, 2].

    For two submodules the library repeats the row of `held` layers and cuts it into four parts for
    each layer, of which the decoder takes the first two.
    """
    first = 2 * submodules * np.arange(layers)[:, None] + np.arange(2)[None]
    return first % (2 * held)


_WINDOWED = (
    'a prefix on layers that see only a window of tokens: in peft the window leaves the prefix '
    'behind, here the prefix stays visible; use prompt tuning on this model'
)


def windowed(model: Model) -> bool:
    """Whether some layer of a model of ours sees only the nearest tokens."""
    sliding = getattr(model.config, 'sliding', None)
    if sliding is not None:
        return any(sliding)
    return getattr(model.config, 'sliding_window', None) is not None


def writes_from(model: Model) -> bool:
    """Whether the model has an encoder that reads tokens and a decoder.

    Raises:
        ValueError: the encoder reads no tokens, as in Whisper.
    """
    roles = model.roles or Roles()
    if roles.decoder_ids and not roles.token_ids:
        raise ValueError(
            f'peft puts virtual tokens into models that read tokens, but this one reads '
            f'{roles.features!r}; peftjax.save keeps them'
        )
    return bool(roles.decoder_ids)


def prefixed(model: Model) -> list[str]:
    """The cores that get a prefix in peft, lowest first; of T5, the decoder's self-attention."""
    if not writes_from(model):
        return cores(model)
    roles, crossing = model.roles or Roles(), set()
    for path in model.sites.weights:
        if roles.matches('crossing', path):
            crossing.add(path.rpartition('/')[0].rpartition('/')[0])
    return [
        path
        for path in cores(model)
        if roles.matches('decoder', path) and path.rpartition('/')[0] not in crossing
    ]


def read_prompt(found: Any) -> tuple[Any, Any]:
    """Prompt tuning, and P-tuning by the prompt that its encoder made.

    In an encoder-decoder only the encoder reads a prompt: the library ignores the rows of a second
    submodule.
    """
    prompt = _prompts(found, _submodules(found))
    path = embedding_path(found.model)
    transform = prompt_tuning(
        num_virtual_tokens=len(prompt), init='normal', targets=re.escape(path)
    )
    return transform, {path: Entry('prompt_tuning', {'prompt': prompt})}


def _submodules(found: Any) -> int:
    """How many submodules a prompt has rows for."""
    config = found.config
    if not writes_from(found.model):
        config.must_be('num_transformer_submodules', 1)
        return 1
    if config.get('task_type') != 'SEQ_2_SEQ_LM':
        raise CheckpointError(
            f'{config.where}: task_type is {config["task_type"]!r}, for which the library puts no '
            "virtual tokens into an encoder and a decoder; they are trained as 'SEQ_2_SEQ_LM'"
        )
    config.must_be('num_transformer_submodules', 2, 1)
    return config.get('num_transformer_submodules') or 2


def _prompts(found: Any, submodules: int = 1) -> np.ndarray:
    """The rows of the first of the submodules that the file has rows for."""
    prompt = found.tensors.pop('prompt_embeddings', None)
    count = found.config.whole('num_virtual_tokens')
    if prompt is None or prompt.ndim != 2 or len(prompt) != count * submodules:
        shape = None if prompt is None else prompt.shape
        raise CheckpointError(
            f'{found.where}: prompt_embeddings is {shape}, for {count} virtual tokens of '
            f'{submodules} submodules'
        )
    return prompt[:count]


def read_cpt(found: Any) -> tuple[Any, Any]:
    """Context-aware prompt tuning: a prompt; the constraints of its training are not needed."""
    for field in _CPT_TRAINING:
        found.config.get(field)
    return read_prompt(found)


_CPT_TRAINING = (
    *('cpt_mask', 'cpt_token_ids', 'cpt_tokens_type_mask', 'opt_loss_decay_factor'),
    *('opt_projection_epsilon', 'opt_projection_format_epsilon', 'opt_weighted_loss_type'),
)


def read_multitask(found: Any) -> tuple[Any, Any]:
    """The prompt of the task that the caller chooses: `P * (C_task R_task)`."""
    config, task = found.config, found.told.pop('task', None)
    if _submodules(found) != 1:
        raise CheckpointError(
            f'{found.where} has prompts for an encoder and for its decoder, by '
            'num_transformer_submodules 2; here only an encoder reads one'
        )
    tasks, rank = config.whole('num_tasks'), config.whole('num_ranks')
    for field in ('prompt_tuning_init_task', 'prompt_tuning_init_state_dict_path'):
        config.get(field)
    if type(task) is not int or not 0 <= task < tasks:
        raise CheckpointError(
            f'{found.where} holds a prompt for each of {tasks} tasks, and task is {task!r}; write '
            f'peftjax.load_adapter(..., task=0), a number up to {tasks - 1}, once for each task, '
            'and peftjax.serving.bank for rows of several'
        )
    shared = found.tensors.get('prompt_embeddings')
    columns, rows = (found.tensors.pop(f'prefix_task_{each}', None) for each in ('cols', 'rows'))
    wanted = (
        None if shared is None else ((tasks, len(shared), rank), (tasks, rank, *shared.shape[1:]))
    )
    shapes = tuple(None if each is None else each.shape for each in (columns, rows))
    if shapes != wanted:
        raise CheckpointError(
            f'{found.where}: prefix_task_cols and prefix_task_rows are {shapes}, need {wanted}'
        )
    found.tensors['prompt_embeddings'] = shared * (columns[task] @ rows[task])
    return read_prompt(found)


def read_cartridge(found: Any) -> tuple[Any, Any]:
    """A prefix, whose first tokens may have stayed as they were in training."""
    found.config.get('num_frozen_tokens')
    return read_prefix(found)


def read_prefix(found: Any) -> tuple[Any, Any]:
    """Keys and values of each layer, in one row of the file: key, then value, layer by layer."""
    found.config.get('prefix_projection')
    if windowed(found.model):
        raise CheckpointError(f'{found.where}: {_WINDOWED}')
    submodules, rows = _submodules(found), _prompts(found)
    paths = prefixed(found.model)
    sites = found.model.sites.modules
    shape = sites[paths[0]].inputs[1][-2:]
    layers = int(np.prod(sites[paths[0]].stack)) if sites[paths[0]].stack else len(paths)
    held = layers
    if writes_from(found.model):
        if submodules == 1:
            raise CheckpointError(
                f'{found.where}: a prefix with num_transformer_submodules 1, which that library '
                'puts before what the decoder has read as well, beside tokens still to be '
                'written; train it with 2'
            )
        held = found.config.whole('num_layers')
    if rows.shape[1] != 2 * held * shape[0] * shape[1] or held < layers:
        raise CheckpointError(
            f'{found.where}: prompt_embeddings {rows.shape} is no prefix of {layers} layers with '
            f'keys and values {shape}'
        )
    parts = rows.reshape(len(rows), 2 * held, *shape).transpose(1, 0, 2, 3)
    # [layers, 2, n, K, H]
    parts = parts[_order(layers, held, submodules)]
    if sites[paths[0]].stack:
        made = {paths[0]: (parts[:, 0], parts[:, 1])}
    else:
        made = dict(zip(paths, parts, strict=True))
    adapter = {
        path: Entry('prefix_tuning', {'key': key, 'value': value})
        for path, (key, value) in made.items()
    }
    transform = prefix_tuning(num_virtual_tokens=len(rows), targets=exactly(paths))
    return transform, {'sites': adapter}


def write_p_tuning(model: Any, names: Any, arguments: Any, adapter: Any, part: Any) -> Any:
    """The prompt that the encoder makes of its embedding."""
    made = export_prompt(adapter)
    return write_prompt(model, names, arguments, made, part, kind='P_TUNING')


def write_prompt(
    model: Any,
    names: Any,
    arguments: Any,
    adapter: Any,
    part: Any,
    *,
    kind: str = 'PROMPT_TUNING',
) -> Any:
    """The prompt."""
    del part
    writes_from(model)  # raises if peft has no prompts for this model
    if names.reads_last:
        raise ValueError(
            'after a prompt, the head of a decoder reads the last position in transformers, even '
            'padding, but here it reads the last token; write prefix_tuning for this model'
        )
    if arguments['places'] is not None and any(arguments['places']):
        raise ValueError('peft puts virtual tokens in front of the others only; leave places out')
    if arguments['keep_virtual']:
        raise ValueError(
            'a file of peft does not say that virtual positions stay in the outputs, and what '
            'load_adapter makes of it leaves them out; write keep_virtual=False'
        )
    ((path, leaves),) = adapter.items()
    prompt = np.asarray(leaves['prompt'])
    return {'prompt_embeddings': prompt}, _prompt_fields(model, kind, prompt)


def write_prefix(model: Any, names: Any, arguments: Any, adapter: Any, part: Any) -> Any:
    """Keys and values in one row, without the network that makes them."""
    if windowed(model):
        raise ValueError(_WINDOWED)
    if arguments['gate'] or not arguments['shift_positions']:
        raise ValueError('peft has prefixes without gates that shift positions only')
    sites = export_prefix(adapter)['sites']
    ordered, submodules = prefixed(model), 2 if writes_from(model) else 1
    if set(sites) != set(ordered):
        raise ValueError(
            f'peft has prefixes at {ordered}, but here they are at {sorted(sites)}; write those '
            'targets'
        )
    parts = [np.stack([sites[path]['key'], sites[path]['value']], -4) for path in ordered]
    # [layers, 2, n, K, H]
    stacked = parts[0] if model.sites.modules[ordered[0]].stack else np.stack(parts)
    # With an even number of layers, two layers would share their parts.
    layers = len(stacked)
    held = layers + 1 if submodules == 2 and layers % 2 == 0 else layers
    spread = np.zeros((2 * held, *stacked.shape[2:]), stacked.dtype)
    spread[_order(layers, held, submodules)] = stacked
    rows = spread.transpose(1, 0, 2, 3).reshape(stacked.shape[2], -1)
    fields = _prompt_fields(model, 'PREFIX_TUNING', rows)
    fields |= {'num_layers': held, 'num_transformer_submodules': submodules}
    return {'prompt_embeddings': rows}, {**fields, 'prefix_projection': False}


def _prompt_fields(model: Any, kind: str, rows: np.ndarray) -> dict[str, Any]:
    ordered = prefixed(model)
    core = model.sites.modules[ordered[0]]
    layers = core.stack[0] if core.stack else len(ordered)
    heads, width = core.inputs[1][-2:]
    prefix = kind == 'PREFIX_TUNING'
    return {
        'peft_type': kind,
        'num_virtual_tokens': len(rows),
        'num_transformer_submodules': 1,
        'num_layers': layers,
        'num_attention_heads': heads if prefix else core.inputs[0][-2],
        'token_dim': heads * width if prefix else rows.shape[1],
    }
