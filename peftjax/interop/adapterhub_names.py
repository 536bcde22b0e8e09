"""Where AdapterHub's adapters stand in a model, and what their tensors are called."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from peftjax.core.base import Model
from peftjax.interop.peft_names import Names
from peftjax.models.names import Slot
from peftjax.models.registry import family_of_config


class Places(NamedTuple):
    """Where a family's adapters stand, `{layer}` in place of the number.

    branches: their location -> our module. intermediate, output: the matrices of the feed-forward
    layer that `intermediate_lora` and `output_lora` mean. attention: where q, k and v stand. core:
    the module that a prefix belongs to.
    classes: what `model_class` is with a head and without.
    """

    branches: Mapping[str, str]
    attention: Mapping[str, str]
    intermediate: str
    output: str
    core: str
    classes: tuple[str, str]


def _encoder(name: str) -> Places:
    layer = 'encoder.layer.{layer}'
    return Places(
        {
            f'{layer}.attention.output': 'layers/attention/branch',
            f'{layer}.output': 'layers/ffn/branch',
        },
        {each[0]: f'{layer}.attention.self.{each}' for each in ('query', 'key', 'value')},
        f'{layer}.intermediate.dense',
        f'{layer}.output.dense',
        f'{layer}.attention.self',
        (f'{name}ForSequenceClassification', f'{name}Model'),
    )


def _decoder(name: str) -> Places:
    layer = 'layers.{layer}'
    return Places(
        {
            f'{layer}.attention_adapters': 'layers/self_attn_branch',
            f'{layer}.output_adapters': 'layers/mlp_branch',
        },
        {each: f'{layer}.self_attn.{each}_proj' for each in 'qkv'},
        # The library calls the last matrix the intermediate one, and the other way round.
        f'{layer}.mlp.down_proj',
        f'{layer}.mlp.up_proj',
        f'{layer}.self_attn',
        (f'{name}ForCausalLM', f'{name}ForCausalLM'),
    )


_FAMILIES = {
    'BertConfig': ('bert', _encoder('Bert')),
    'RobertaConfig': ('roberta', _encoder('Roberta')),
    'LlamaConfig': ('llama', _decoder('Llama')),
}

# Our leaf, their tensor below the adapter's name, and how ours comes of theirs.
Table = list[tuple[str, str, str]]


def bottleneck_table(arguments: Mapping[str, Any]) -> Table:
    # With a norm in front, their sequence holds it as number 0 and the matrix as number 1.
    first = 1 if arguments['norm_before'] else 0
    table = [
        ('down', f'adapter_down.{first}.weight', 'transposed'),
        ('down_bias', f'adapter_down.{first}.bias', 'same'),
        ('up', 'adapter_up.weight', 'transposed'),
        ('up_bias', 'adapter_up.bias', 'same'),
    ]
    if arguments['scale'] == 'learned':
        table.append(('scale', 'scaling', 'first'))
    if arguments['gate']:
        table += [('gate', 'gate.weight', 'first'), ('gate_bias', 'gate.bias', 'first')]
    for norm, theirs in (
        ('norm_before', 'adapter_norm_before'),
        ('norm_after', 'adapter_norm_after'),
    ):
        if arguments[norm]:
            table += [
                (norm, f'{theirs}.weight', 'same'),
                (f'{norm}_bias', f'{theirs}.bias', 'same'),
            ]
    return table


COMPACTER_TABLE = [
    (f'{ours}_{part}', f'{theirs}.{tensor}', 'same')
    for ours, theirs in (('down', 'adapter_down.0'), ('up', 'adapter_up'))
    for part, tensor in (('left', 'W_left'), ('right', 'W_right'), ('bias', 'b'))
]


class Hub:
    """A model's names as AdapterHub has them, and the branches that its adapters stand at."""

    def __init__(self, model: Model):
        kind = type(model.config).__name__
        if kind not in _FAMILIES:
            raise ValueError(
                f'AdapterHub files are read and written for {", ".join(_FAMILIES)}, not {kind}'
            )
        llama_alone = {'qkv_bias': False, 'qk_norm': False, 'sliding_window': None}
        for field, plain in llama_alone.items():
            if getattr(model.config, field, plain) != plain:
                raise ValueError(
                    f'AdapterHub files are read and written for Llama itself, and this model has '
                    f'{field} {getattr(model.config, field)!r}'
                )
        self.names = Names(model)
        self.prefix = family_of_config(model.config).prefix
        self.family, self.places = _FAMILIES[kind]
        self.classes = self.places.classes
        self.model = model

    def branch(self, location: str) -> tuple[Slot, int] | None:
        """The branch at `encoder.layer.1.output`, its layers as those of a leaf, and which."""
        for pattern, ours in self.places.branches.items():
            match = re.fullmatch(re.escape(pattern).replace(r'\{layer\}', r'(\d{1,5})'), location)
            if match is None:
                continue
            for slot in self.slots():
                if slot.path in (ours, ours.replace('layers/', f'layers_{match[1]}/', 1)):
                    index = int(match[1]) if slot.stacked else 0
                    return (slot, index) if index < len(slot.names) else None
        return None

    def slots(self) -> list[Slot]:
        """The branches of the model, by the names of their layers."""
        found = []
        for pattern, ours in self.places.branches.items():
            for path, site in self.model.sites.modules.items():
                looped = re.fullmatch(ours.replace('layers/', r'layers_(\d+)/', 1), path)
                if path != ours and looped is None:
                    continue
                layers = [int(looped[1])] if looped else range(site.stack[0])
                names = tuple(pattern.format(layer=layer) for layer in layers)
                found.append(Slot(path, names, looped is None, False, ()))
        return found
