"""Where AdapterHub's adapters stand in a model, and what their tensors are called."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from peftjax.core.model import Model
from peftjax.interop.peft.names import Names
from peftjax.models.names import Slot
from peftjax.models.registry import family_of_config


class Places(NamedTuple):
    """Where a family's adapters stand, `{layer}` in place of the number.

    layer: the whole of one, theirs. branches: their location -> our module. intermediate, output:
    the matrices of the feed-forward layer that `intermediate_lora` and `output_lora` mean.
    attention: where q, k and v stand. core: the module that a prefix belongs to.
    embeddings: our module behind which tokens are vectors. last: ours before the output embedding,
    or None. prompts: whether their prompt tuning runs on this family.
    name: what the names of its classes begin with.
    """

    name: str
    layer: str
    branches: Mapping[str, str]
    attention: Mapping[str, str]
    intermediate: str
    output: str
    core: str
    embeddings: str
    last: str | None
    prompts: bool


def _encoder(name: str) -> Places:
    layer = 'encoder.layer.{layer}'
    return Places(
        name,
        layer,
        {
            f'{layer}.attention.output': 'layers/attention/branch',
            f'{layer}.output': 'layers/ffn/branch',
        },
        {each[0]: f'{layer}.attention.self.{each}' for each in ('query', 'key', 'value')},
        f'{layer}.intermediate.dense',
        f'{layer}.output.dense',
        f'{layer}.attention.self',
        'embeddings',
        None,
        True,
    )


def _decoder(name: str) -> Places:
    layer = 'layers.{layer}'
    return Places(
        name,
        layer,
        {
            f'{layer}.attention_adapters': 'layers/self_attn_branch',
            f'{layer}.output_adapters': 'layers/mlp_branch',
        },
        {each: f'{layer}.self_attn.{each}_proj' for each in 'qkv'},
        # The library calls the last matrix the intermediate one, and the other way round.
        f'{layer}.mlp.down_proj',
        f'{layer}.mlp.up_proj',
        f'{layer}.self_attn',
        'embed_tokens',
        'norm',
        False,
    )


_FAMILIES = {
    'BertConfig': ('bert', _encoder('Bert')),
    'RobertaConfig': ('roberta', _encoder('Roberta')),
    'LlamaConfig': ('llama', _decoder('Llama')),
}


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
        self.names: Names = Names(model)
        self.prefix: str = family_of_config(model.config).prefix
        self.family: str
        self.places: Places
        self.family, self.places = _FAMILIES[kind]
        self.model: Model = model

    def branch(self, location: str) -> tuple[Slot, int] | None:
        """The branch at `encoder.layer.1.output`, its layers as those of a leaf, and which."""
        return self._found(self.places.branches, location)

    def block(self, location: str) -> tuple[Slot, int] | None:
        """The same of a whole layer."""
        return self._found({self.places.layer: 'layers'}, location)

    def branches(self) -> list[Slot]:
        """The branches of the model, by the names of their layers."""
        return self._slots(self.places.branches)

    def blocks(self) -> list[Slot]:
        """The layers of the model."""
        return self._slots({self.places.layer: 'layers'})

    def _found(self, modules: Mapping[str, str], location: str) -> tuple[Slot, int] | None:
        for slot in self._slots(modules):
            if location in slot.names:
                return slot, slot.names.index(location)
        return None

    def _slots(self, modules: Mapping[str, str]) -> list[Slot]:
        found = []
        for pattern, ours in modules.items():
            looped = re.compile(re.sub(r'layers\b', r'layers_(\\d+)', ours, count=1))
            for path, site in self.model.sites.modules.items():
                match = looped.fullmatch(path)
                if path != ours and match is None:
                    continue
                layers = [int(match[1])] if match else range(site.stack[0])
                names = tuple(pattern.format(layer=layer) for layer in layers)
                found.append(Slot(path, names, match is None, False, ()))
        return found


def layer_of(location: str) -> int:
    """The number in the name of a module."""
    (number,) = [part for part in location.split('.') if part.isdigit()]
    return int(number)
