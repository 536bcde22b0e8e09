"""Methods that act on activations, at the places that each model has for them."""

import re
from collections.abc import Callable

import peftjax
from peftjax.core.paths import exactly

# What writes keys and values beside a core.
_KEYS = {
    'llama': ('k_proj', 'v_proj'), 'gemma': ('k_proj', 'v_proj'), 'whisper': ('k_proj', 'v_proj'),
    't5': ('k', 'v'),
}  # fmt: skip
_OTHERS = {'linen': r'dense_\d', 'nnx': r'layers/\d/dense'}


class _Places:
    """Where a model can be reached."""

    def __init__(self, name: str, model: peftjax.Model) -> None:
        roles, modules = model.roles or peftjax.Roles(), model.sites.modules
        self.embedding = [path for path in modules if roles.matches('embedding', path)]
        self.cores = exactly([path for path, site in modules.items() if site.attention])
        ends = [path for path in modules if roles.matches('residual_end', path)]
        self.ends = exactly(ends or [path for path in modules if re.fullmatch(_OTHERS[name], path)])
        self.key, self.value = _KEYS.get(name, ('key', 'value'))

    def prompt(self, **options: object) -> peftjax.PeftTransform:
        target = exactly(self.embedding) if self.embedding else r'.*embed.*'
        return peftjax.prompt_tuning(targets=target, init='normal', **options)  # pyright: ignore[reportArgumentType]


_MAKERS: dict[str, Callable[[_Places], peftjax.PeftTransform]] = {
    'lora': lambda at: peftjax.lora(rank=2, targets='all-linear'),
    'gated lora': lambda at: peftjax.gated(peftjax.lora(rank=2, targets='all-linear')),
    'activated lora': lambda at: peftjax.activated(
        peftjax.lora(rank=2, targets='all-linear'), invocation=(3,)
    ),
    'prompt': lambda at: at.prompt(num_virtual_tokens=3),
    'placed prompt': lambda at: at.prompt(num_virtual_tokens=3, places=(0, 2, 6)),
    'prefix': lambda at: peftjax.prefix_tuning(num_virtual_tokens=3, targets=at.cores),
    'gated prefix': lambda at: peftjax.prefix_tuning(
        num_virtual_tokens=3, gate=True, targets=at.cores
    ),
    'adaption prompt': lambda at: peftjax.adaption_prompt(
        num_virtual_tokens=3, key=at.key, value=at.value, targets=at.cores
    ),
    'bottleneck': lambda at: peftjax.bottleneck(size=3, reads='output', targets=at.ends),
    'gated bottleneck': lambda at: peftjax.bottleneck(
        size=3, reads='output', gate=True, targets=at.ends
    ),
    'compacter': lambda at: peftjax.compacter(size=4, terms=2, reads='output', targets=at.ends),
    'reft everywhere': lambda at: peftjax.loreft(rank=2, targets=at.ends),
    'reft first': lambda at: peftjax.loreft(rank=2, positions='f2', targets=at.ends),
    'reft ends': lambda at: peftjax.loreft(rank=2, positions='f1+l1', targets=at.ends),
    'mam': lambda at: peftjax.mam(
        cores=at.cores, branches=at.ends, num_virtual_tokens=3, projection=4, size=3
    ),
    'unipelt': lambda at: peftjax.unipelt(
        cores=at.cores, kernels='all-linear', branches=at.ends, num_virtual_tokens=3, projection=4,
        rank=2, size=3, reads='output',
    ),
    'prompt and gate': lambda at: peftjax.chain(
        at.prompt(num_virtual_tokens=2), peftjax.gated(peftjax.lora(rank=2, targets='all-linear'))
    ),
    'prompt and reft': lambda at: peftjax.chain(
        at.prompt(num_virtual_tokens=2), peftjax.loreft(rank=2, positions='f1', targets=at.ends)
    ),
}  # fmt: skip
METHODS = tuple(_MAKERS)


def make(method: str, name: str, model: peftjax.Model) -> peftjax.PeftTransform:
    """A method at the places that the model of this name has for it."""
    return _MAKERS[method](_Places(name, model))
