"""Prompts and prefixes of Hugging Face's peft as ours."""

import re
from typing import Any

import numpy as np

from peftjax.core.entries import Entry
from peftjax.core.model import Model
from peftjax.core.paths import exactly
from peftjax.core.roles import Roles
from peftjax.interop.errors import CheckpointError
from peftjax.methods.adaption_prompt import adaption_prompt
from peftjax.methods.p_tuning import export_prompt
from peftjax.methods.prefix_tuning import export_prefix, prefix_tuning
from peftjax.methods.prompt_tuning import prompt_tuning


def embedding_path(model: Model) -> str:
    """The word embedding of a model of ours."""
    roles = model.roles or Roles()
    return next(path for path in model.sites.modules if roles.matches('embedding', path))


def cores(model: Model) -> list[str]:
    """Its attention cores: one of scanned layers, or one for each, the lowest first."""
    found = [path for path, site in model.sites.modules.items() if site.attention]
    return sorted(found, key=lambda path: int((re.search(r'_(\d+)/', path) or [0, 0])[1]))


_WINDOWED = (
    'a prefix on layers that see a window of tokens alone: peft moves it out of sight with the '
    'tokens, here it stays in sight; use prompt tuning on this model'
)


def windowed(model: Model) -> bool:
    """Whether some layer of a model of ours sees the nearest tokens alone."""
    sliding = getattr(model.config, 'sliding', None)
    if sliding is not None:
        return any(sliding)
    return getattr(model.config, 'sliding_window', None) is not None


def read_prompt(found: Any) -> tuple[Any, Any]:
    """Prompt tuning, and P-tuning by the prompt that its encoder made."""
    prompt = _prompts(found)
    path = embedding_path(found.model)
    transform = prompt_tuning(
        num_virtual_tokens=len(prompt), init='normal', targets=re.escape(path)
    )
    return transform, {path: Entry('prompt_tuning', {'prompt': prompt})}


def _prompts(found: Any) -> np.ndarray:
    config = found.config
    config.must_be('num_transformer_submodules', 1)
    prompt = found.tensors.pop('prompt_embeddings', None)
    if prompt is None or prompt.ndim != 2 or len(prompt) != config.whole('num_virtual_tokens'):
        shape = None if prompt is None else prompt.shape
        raise CheckpointError(
            f'{found.where}: prompt_embeddings is {shape}, for {config["num_virtual_tokens"]} '
            'virtual tokens'
        )
    return prompt


def read_cpt(found: Any) -> tuple[Any, Any]:
    """Context-aware prompt tuning: a prompt, whatever its training held it to."""
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
    rows = _prompts(found)
    paths = cores(found.model)
    sites = found.model.sites.modules
    shape = sites[paths[0]].inputs[1][-2:]
    layers = int(np.prod(sites[paths[0]].stack)) if sites[paths[0]].stack else len(paths)
    if rows.shape[1] != 2 * layers * shape[0] * shape[1]:
        raise CheckpointError(
            f'{found.where}: prompt_embeddings {rows.shape} is no prefix of {layers} layers with '
            f'keys and values {shape}'
        )
    # [layers, 2, n, K, H]
    parts = rows.reshape(len(rows), layers, 2, *shape).transpose(1, 2, 0, 3, 4)
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


def read_adaption(found: Any) -> tuple[Any, Any]:
    """The topmost layers, as many as the config says."""
    config = found.config
    config.get('target_modules')
    count, length = config.whole('adapter_layers'), config.whole('adapter_len')
    kernel = '{}/k_proj/kernel'
    taken: dict[int, dict[str, np.ndarray]] = {}
    for role in ('prompt', 'gate'):
        for name in [name for name in found.tensors if name.endswith(f'.adaption_{role}')]:
            match = re.search(r'\.layers\.(\d+)\.self_attn\.', name)
            if match is None:
                raise CheckpointError(f'{found.where}: {name} is in no attention of a decoder')
            taken.setdefault(int(match[1]), {})[role] = found.tensors.pop(name)[0]
    paths = cores(found.model)
    sites = found.model.sites
    stacked = bool(sites.modules[paths[0]].stack)
    total = sites.modules[paths[0]].stack[0] if stacked else len(paths)
    if sorted(taken) != list(range(total - count, total)) or any(
        len(e) < 2 for e in taken.values()
    ):
        raise CheckpointError(
            f'{found.where} holds prompts of layers {sorted(taken)}, adapter_layers says the '
            f'topmost {count} of {total}'
        )
    if stacked and count < total:
        raise CheckpointError(
            f'{found.where} adapts {count} of {total} layers; write peftjax.load(..., scan=False)'
        )
    if stacked:
        arrays = {
            role: np.stack([taken[layer][role] for layer in sorted(taken)])
            for role in ('prompt', 'gate')
        }
        made = {paths[0]: arrays}
    else:
        made = {paths[layer]: arrays for layer, arrays in taken.items()}
    adapter = {
        path: Entry(
            'adaption_prompt',
            arrays,
            sites.weights[kernel.format(path.removesuffix('/core'))].layout,
        )
        for path, arrays in made.items()
    }
    transform = adaption_prompt(num_virtual_tokens=length, targets=exactly(adapter))
    return transform, adapter


def write_prompt(model: Any, names: Any, arguments: Any, adapter: Any, part: Any) -> Any:
    """The prompt, or what an encoder makes of its embedding."""
    if arguments['places'] is not None and any(arguments['places']):
        raise ValueError('peft puts virtual tokens in front of the others only; leave places out')
    if arguments['keep_virtual']:
        raise ValueError(
            'a file of peft does not say that virtual positions stay in the outputs, and what '
            'load_adapter makes of it leaves them out; write keep_virtual=False'
        )
    if part.about.name == 'p_tuning':
        adapter = export_prompt(adapter)
    ((path, leaves),) = adapter.items()
    prompt = np.asarray(leaves['prompt'])
    kind = 'P_TUNING' if part.about.name == 'p_tuning' else 'PROMPT_TUNING'
    return {'prompt_embeddings': prompt}, _prompt_fields(model, kind, prompt)


def write_prefix(model: Any, names: Any, arguments: Any, adapter: Any, part: Any) -> Any:
    """Keys and values in one row, without the network that makes them."""
    if windowed(model):
        raise ValueError(_WINDOWED)
    if arguments['gate'] or not arguments['shift_positions']:
        raise ValueError('peft has prefixes without gates that shift positions only')
    sites = export_prefix(adapter)['sites']
    ordered = cores(model)
    if set(sites) != set(ordered):
        raise ValueError(f'peft has prefixes at all layers, here are {sorted(sites)}')
    parts = [np.stack([sites[path]['key'], sites[path]['value']], -4) for path in ordered]
    # [layers, 2, n, K, H]
    stacked = parts[0] if model.sites.modules[ordered[0]].stack else np.stack(parts)
    rows = stacked.transpose(2, 0, 1, 3, 4).reshape(stacked.shape[2], -1)
    fields = _prompt_fields(model, 'PREFIX_TUNING', rows)
    return {'prompt_embeddings': rows}, {**fields, 'prefix_projection': False}


def _prompt_fields(model: Any, kind: str, rows: np.ndarray) -> dict[str, Any]:
    core = model.sites.modules[cores(model)[0]]
    layers = core.stack[0] if core.stack else len(cores(model))
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


def write_adaption(model: Any, names: Any, arguments: Any, adapter: Any, part: Any) -> Any:
    """A prompt and a gate for each of the topmost layers."""
    del names, part
    ordered = cores(model)
    stack = model.sites.modules[ordered[0]].stack
    total = stack[0] if stack else len(ordered)
    chosen = [path for path in ordered if path in adapter]
    if not stack and chosen != ordered[total - len(chosen) :]:
        raise ValueError(f'peft has adaption prompts at the topmost layers, here are {chosen}')
    tensors = {}
    count = total if stack else len(chosen)
    for number in range(count):
        entry = adapter[chosen[0 if stack else number]]
        name = f'base_model.model.model.layers.{total - count + number}.self_attn.adaption'
        prompt, gate = (np.asarray(entry[each]) for each in ('prompt', 'gate'))
        tensors[f'{name}_prompt'] = (prompt[number] if stack else prompt)[None]
        tensors[f'{name}_gate'] = (gate[number] if stack else gate).reshape(1)
    return tensors, {
        'peft_type': 'ADAPTION_PROMPT',
        'target_modules': 'self_attn',
        'adapter_len': arguments['num_virtual_tokens'],
        'adapter_layers': count,
    }
