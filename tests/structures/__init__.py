"""The structures on which the binding is proved."""

from tests.structures import (
    function_loops,
    function_refusals,
    function_uses,
    linen_attention,
    linen_layers,
    linen_state,
    linen_transforms,
    nnx_layers,
    nnx_transforms,
)
from tests.structures.entry import TABLE, Structure

__all__ = ['MODULES', 'TABLE', 'Structure']

# Importing these fills TABLE, in this order.
MODULES = (
    linen_layers,
    linen_attention,
    linen_transforms,
    linen_state,
    nnx_layers,
    nnx_transforms,
    function_uses,
    function_loops,
    function_refusals,
)
