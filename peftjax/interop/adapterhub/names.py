"""Where AdapterHub's adapters are in a model, and what their tensors are called."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from peftjax.core.model import Model
from peftjax.interop.peft.names import Names
from peftjax.models.names import Slot
from peftjax.models.registry import family_of_config


class Places(NamedTuple):
    """The places of a family's adapters, with `{layer}` in place of the layer's number.

    name: the start of the names of its classes. kind: the class of a model with a language head,
    or None for the name and `ForCausalLM`. width: the config's field with the features of the
    residual. layers: whole layers, theirs -> ours. branches: their location -> our module, and the
    config's switch for it. attention: the matrices of q, k and v. merged: one matrix of all three,
    or None. intermediate, output: the feed-forward matrices that `intermediate_lora` and
    `output_lora` mean. core: the module that a prefix belongs to; None if prefixes cannot be read.
    embeddings: our module after which tokens are vectors, or None. last: our module before the
    output embedding, or None. prompts: whether their prompt tuning runs on this family. reft:
    whether their ReFT knows the tokens that it edits.
    """

    name: str
    kind: str | None
    width: str
    layers: Mapping[str, str]
    branches: Mapping[str, tuple[str, str]]
    attention: Mapping[str, tuple[str, ...]]
    merged: str | None
    intermediate: tuple[str, ...]
    output: tuple[str, ...]
    core: str | None
    embeddings: str | None
    last: str | None
    prompts: bool
    reft: bool = True


_MULTIHEAD, _OUTPUT, _CROSS = 'mh_adapter', 'output_adapter', 'cross_adapter'


def _encoder(name: str) -> Places:
    layer = 'encoder.layer.{layer}'
    return Places(
        name,
        None,
        'hidden_size',
        {layer: 'layers'},
        {
            f'{layer}.attention.output': ('layers/attention/branch', _MULTIHEAD),
            f'{layer}.output': ('layers/ffn/branch', _OUTPUT),
        },
        {each[0]: (f'{layer}.attention.self.{each}',) for each in ('query', 'key', 'value')},
        None,
        (f'{layer}.intermediate.dense',),
        (f'{layer}.output.dense',),
        f'{layer}.attention.self',
        'embeddings',
        None,
        True,
    )


def _llama() -> Places:
    layer = 'layers.{layer}'
    return Places(
        'Llama',
        None,
        'hidden_size',
        {layer: 'layers'},
        {
            f'{layer}.attention_adapters': ('layers/self_attn_branch', _MULTIHEAD),
            f'{layer}.output_adapters': ('layers/mlp_branch', _OUTPUT),
        },
        {each: (f'{layer}.self_attn.{each}_proj',) for each in 'qkv'},
        None,
        # The library calls the last matrix intermediate, and the intermediate one output.
        (f'{layer}.mlp.down_proj',),
        (f'{layer}.mlp.up_proj',),
        f'{layer}.self_attn',
        'embed_tokens',
        'norm',
        False,
    )


def _gpt2() -> Places:
    layer = 'h.{layer}'
    return Places(
        'GPT2',
        'GPT2LMHeadModel',
        'n_embd',
        {layer: 'layers'},
        {
            f'{layer}.attention_adapters': ('layers/attn_branch', _MULTIHEAD),
            f'{layer}.output_adapters': ('layers/mlp_branch', _OUTPUT),
        },
        {},
        f'{layer}.attn.c_attn',
        (f'{layer}.mlp.c_fc',),
        (f'{layer}.mlp.c_proj',),
        f'{layer}.attn',
        'dropout',
        'ln_f',
        False,
    )


def _t5(gated: bool) -> Places:
    reads, writes = 'encoder.block.{layer}', 'decoder.block.{layer}'
    attentions = (
        f'{reads}.layer.0.SelfAttention',
        f'{writes}.layer.0.SelfAttention',
        f'{writes}.layer.1.EncDecAttention',
    )
    feeds = tuple(f'{each}.DenseReluDense' for each in (f'{reads}.layer.1', f'{writes}.layer.2'))
    return Places(
        'T5',
        'T5ForConditionalGeneration',
        'd_model',
        {reads: 'encoder/layers', writes: 'decoder/layers'},
        {
            f'{reads}.layer.0': ('encoder/layers/self_attn_branch', _MULTIHEAD),
            f'{writes}.layer.0': ('decoder/layers/self_attn_branch', _MULTIHEAD),
            f'{writes}.layer.1': ('decoder/layers/cross_attn_branch', _CROSS),
            f'{reads}.layer.1': ('encoder/layers/ffn_branch', _OUTPUT),
            f'{writes}.layer.2': ('decoder/layers/ffn_branch', _OUTPUT),
        },
        {letter: tuple(f'{each}.{letter}' for each in attentions) for letter in 'qkv'},
        None,
        tuple(f'{each}.{"wi_1" if gated else "wi"}' for each in feeds),
        tuple(f'{each}.wo' for each in feeds),
        None,
        None,
        None,
        False,
        False,
    )


_FAMILIES: dict[str, tuple[str, Callable[[Any], Places]]] = {
    'BertConfig': ('bert', lambda config: _encoder('Bert')),
    'RobertaConfig': ('roberta', lambda config: _encoder('Roberta')),
    'LlamaConfig': ('llama', lambda config: _llama()),
    'GPT2Config': ('gpt2', lambda config: _gpt2()),
    'T5Config': ('t5', lambda config: _t5(config.gated)),
}


class Hub:
    """AdapterHub's names for a model, and the branches where its adapters are."""

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
        self.family, places = _FAMILIES[kind]
        self.places = places(model.config)
        self.model: Model = model

    def branch(self, location: str) -> tuple[Slot, int] | None:
        """The branch at a location such as `encoder.layer.1.output`, and which of its layers."""
        return self._found({n: ours for n, (ours, _) in self.places.branches.items()}, location)

    def block(self, location: str) -> tuple[Slot, int] | None:
        """The same for a whole layer."""
        return self._found(self.places.layers, location)

    def branches(self) -> list[Slot]:
        """The branches of the model, by the names of their layers."""
        return self._slots({n: ours for n, (ours, _) in self.places.branches.items()})

    def blocks(self) -> list[Slot]:
        """The layers of the model."""
        return self._slots(self.places.layers)

    def switch_of(self, location: str) -> str:
        """The config's switch for a branch."""
        plain = re.sub(r'\.\d+(?=\.|$)', '.{layer}', location, count=1)
        return self.places.branches[plain][1]

    def layer_of(self, location: str) -> int:
        """The number of a module's layer; those of a decoder continue after the encoder's."""
        number = next(int(part) for part in location.split('.') if part.isdigit())
        before = self.model.config.num_layers if location.startswith('decoder.') else 0  # pyright: ignore[reportOptionalMemberAccess]
        return number + before

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
