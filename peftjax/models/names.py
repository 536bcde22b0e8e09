"""Tables that pair tensor names of a checkpoint with parameter paths, for both directions."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax


class Rule(NamedTuple):
    """One tensor of the checkpoint and the leaf that holds it; `{layer}` stands for the index.

    theirs: 'encoder.layer.{layer}.output.dense.weight'; ours: 'layers/ffn/output/kernel'.
    transposed: the file holds [out, in], the leaf [in, out].
    """

    theirs: str
    ours: str
    transposed: bool = False


class Slot(NamedTuple):
    """One leaf of a model and its tensors: one, or one for each layer if the leaf is stacked."""

    path: str
    names: tuple[str, ...]
    stacked: bool
    transposed: bool
    shape: tuple[int, ...]  # of each tensor, in the checkpoint


def dense(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules for a linear layer: kernel, and bias for models that have one."""
    return (
        Rule(f'{theirs}.weight', f'{ours}/kernel', transposed=True),
        Rule(f'{theirs}.bias', f'{ours}/bias'),
    )


def norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules for a layer norm (scale and bias) or an RMS norm (scale)."""
    return Rule(f'{theirs}.weight', f'{ours}/scale'), Rule(f'{theirs}.bias', f'{ours}/bias')


def embedding(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rule for a lookup table."""
    return (Rule(f'{theirs}.weight', f'{ours}/embedding'),)


def slots(rules: Sequence[Rule], leaves: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[Slot, ...]:
    """Pairs every leaf, by its '/'-joined path, with the names and shape of its tensors.

    Example:
        >>> leaf = jax.ShapeDtypeStruct((2, 3, 4), 'float32')
        >>> slot, = slots(dense('h.{layer}.fc', 'layers/fc'), {'layers/fc/kernel': leaf})
        >>> slot.names, slot.shape
        (('h.0.fc.weight', 'h.1.fc.weight'), (4, 3))

    Raises:
        KeyError: a leaf that no rule names.
    """
    by_path = {rule.ours: rule for rule in rules}
    found = []
    for path, leaf in leaves.items():
        looped = re.fullmatch(r'(.*/)?layers_(\d+)/(.*)', path)
        rule = by_path[f'{looped[1] or ""}layers/{looped[3]}' if looped else path]
        stacked = '/layers/' in f'/{path}'
        shape = leaf.shape[1:] if stacked else leaf.shape
        layers = range(leaf.shape[0]) if stacked else [int(looped[2])] if looped else [0]
        found.append(
            Slot(
                path,
                tuple(rule.theirs.format(layer=layer) for layer in layers),
                stacked,
                rule.transposed,
                tuple(reversed(shape)) if rule.transposed else tuple(shape),
            )
        )
    return tuple(found)
