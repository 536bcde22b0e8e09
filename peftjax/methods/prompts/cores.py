"""Checks of attention cores, for methods on attention."""

from peftjax.core.paths import TargetError
from peftjax.core.sites import ModuleSite


def check_core(site: ModuleSite) -> None:
    """Raises `TargetError` unless a module is an attention core whose inputs have 4 axes."""
    if not site.attention:
        raise TargetError(
            f'module {site.path!r} is not known as an attention core. In the attention modules of '
            "Flax the core is '.../attention_fn'; for another model write "
            'peftjax.wrap(..., roles=peftjax.Roles(attention=...)) with a regular expression for '
            'modules called with (query, key, value, mask, bias)'
        )
    if any(len(shape) != 4 for shape in site.inputs):
        raise TargetError(
            f'module {site.path!r} is called with {site.inputs}, but a core takes query, key and '
            'value of [batch, length, heads, width]'
        )
