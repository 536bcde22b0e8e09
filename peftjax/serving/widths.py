"""Pads adapters of several sizes to the same shapes: ranks at the end, prompts in front."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core import paths, readable
from peftjax.core.entries import Adapter, Entry
from peftjax.core.holes import is_hole
from peftjax.core.model import Model
from peftjax.core.rules import ROOT, CallRule
from peftjax.core.transform import PeftTransform
from peftjax.core.vectorize import program_key


def shapes_of(model: Model, transform: PeftTransform) -> Adapter:
    """The shapes of the adapter that `init` of the transform gives."""
    return jax.eval_shape(lambda: transform.init(jax.random.key(0), model)[0])


def widest(model: Model, transforms: Sequence[PeftTransform]) -> PeftTransform:
    """The transform whose adapter is large enough for the adapters of all others.

    Raises:
      ValueError: there is none.
    """
    for each in transforms[1:]:
        check_alike(transforms[0], each)
    distinct = list(dict.fromkeys(transforms))
    adapters = [shapes_of(model, tx) for tx in distinct]
    for other in adapters[1:]:
        _check_places(other, adapters[0])
    shapes = [[leaf.shape for leaf in jax.tree.leaves(adapter)] for adapter in adapters]
    for transform, own in zip(distinct, shapes, strict=True):
        if all(_holds(own, other) for other in shapes):
            return transform
    raise ValueError(
        f'none of the transforms {distinct} has the largest rank at every target; pass one that '
        'has as transform='
    )


def _check_places(adapter: Any, like: Any) -> None:
    """Raises `ValueError` unless two adapters have arrays of the same names at the same places."""
    mine, theirs = ({*paths.flatten(each)} for each in (adapter, like))
    if mine != theirs:
        raise ValueError(
            f'the adapter has {sorted(mine - theirs)[:4]} that the bank lacks, and lacks '
            f'{sorted(theirs - mine)[:4]}: adapters of one bank must act at the same places; use a '
            'bank for each'
        )


def _holds(one: Sequence[tuple[int, ...]], other: Sequence[tuple[int, ...]]) -> bool:
    return len(one) == len(other) and all(
        len(a) == len(b) and all(x >= y for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def check_alike(transform: PeftTransform, other: PeftTransform) -> None:
    """Raises `ValueError` unless two transforms differ in numbers and sizes alone."""
    one, two = (program_key(_without_start(each), masked=True) for each in (transform, other))
    if one == two:
        return
    raise ValueError(
        'adapters of one bank must be of one method, and may differ only in numbers, ranks and '
        f'lengths; found {transform!r} and {other!r}. Use a bank for each'
    )


# Arguments that say which leaves and modules there are; the adapters' own trees are compared.
_TARGETS = {'targets', 'feedforward', 'cores', 'kernels', 'branches'}


def _without_start(value: Any) -> Any:
    """The description of a transform without the arguments that only `start` reads.

    These arguments decide the leaves, their ranks and their initial values; arrays are compared
    separately.
    """
    if isinstance(value, Mapping):
        return {name: _without_start(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_without_start(each) for each in value)
    if not isinstance(value, PeftTransform) or value.about is None:
        return value
    about, left = value.about, set(_TARGETS)
    if value.rest is None:
        left.add('init')
    if about.padded_by == 'rank':
        left.add('rank_pattern')
    arguments = {n: _without_start(each) for n, each in about.arguments.items() if n not in left}
    if arguments.get('dtype') is not None:
        arguments['dtype'] = str(np.dtype(arguments['dtype']))
    return value.replace(about=dataclasses.replace(about, arguments=arguments))


def virtual_tokens(transform: PeftTransform, adapter: Adapter, own: Any) -> int:
    """How many virtual tokens an adapter adds in front of a row.

    Raises:
      ValueError: virtual tokens that cannot be hidden from rows with fewer.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (adapter, own))
    root = transform.rules(*shapes).get(ROOT)
    if not isinstance(root, CallRule) or not root.virtual_tokens:
        return 0
    if root.shorten is None or root.keeps_virtual:
        raise ValueError(
            f'{transform!r} adds virtual tokens, which rows with fewer of them must not see: '
            'write keep_virtual=False, or give its CallRule a function `shorten`'
        )
    return root.virtual_tokens


def widened(transform: PeftTransform, adapter: Adapter, like: Any) -> Any:
    """The adapter with zeros up to the shapes of `like`, as NumPy arrays.

    The zeros come in front for virtual tokens, and at the end for ranks.

    Raises:
      ValueError: it has another structure, or larger arrays.
    """
    about = transform.about
    if about is not None and about.name in ('chain', 'named_chain'):
        members: Any = about.arguments['transforms']
        if isinstance(members, Mapping):
            return {name: widened(tx, adapter[name], like[name]) for name, tx in members.items()}
        return tuple(
            widened(tx, part, other) for tx, part, other in zip(members, adapter, like, strict=True)
        )
    front = about is not None and about.masked_by is not None
    _check_places(adapter, like)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, other: _padded(path, leaf, other, front), adapter, like
    )


def _padded(path: Any, leaf: Any, like: Any, front: bool) -> np.ndarray:
    value = np.asarray(leaf)
    if value.shape == like.shape:
        return value.astype(like.dtype)
    if value.ndim != like.ndim or any(a > b for a, b in zip(value.shape, like.shape, strict=True)):
        raise ValueError(
            f'{paths.join(path)} of the adapter is {list(value.shape)}, but the bank '
            f'holds {list(like.shape)}; make the bank with a transform of larger ranks or lengths'
        )
    made = np.zeros(like.shape, like.dtype)
    places = (
        slice(size - own, size) if front else slice(own)
        for own, size in zip(value.shape, like.shape, strict=True)
    )
    made[tuple(places)] = value
    return made


def like_own(own: Any, like: Any) -> Any:
    """A method's own numbers with the names of `like`: a rate of dropout is 0 where it is missing.

    like: the numbers of one slot, the slot in front of those that are not shared.

    Raises:
      ValueError: other names.
    """
    if not isinstance(like, Mapping):
        if isinstance(like, tuple):
            return tuple(like_own(*each) for each in zip(own, like, strict=True))
        return own
    missing, more = set(like) - set(own), set(own) - set(like)
    if (missing | more) - {'dropout'}:
        raise ValueError(
            f'adapters of the bank have the numbers {sorted(map(str, like))}, but this one has '
            f'{sorted(map(str, own))}; use a bank for each'
        )
    parts = {
        name: np.zeros((), each.dtype) if name in missing else like_own(own[name], each)
        for name, each in like.items()
    }
    return Entry(like.method, parts, like.layout) if isinstance(like, Entry) else parts


def check_starts(transform: PeftTransform, adapter: Adapter, like: Any) -> None:
    """Raises `ValueError` if adapters of other sizes took other parts of the weights."""
    if transform.rest is None:
        return
    sizes, others = ([leaf.shape for leaf in jax.tree.leaves(each)] for each in (adapter, like))
    if sizes != others:
        raise ValueError(
            f'{transform!r} moves a part of the weights that depends on its rank into the adapter, '
            'so that adapters of other ranks need other frozen parameters; use a bank for each '
            'rank, or peftjax.merging.to_lora for adapters of the whole base'
        )


def check_params(params: Any, others: Any) -> None:
    """Raises `ValueError` unless both are the remainder of the same base."""
    leaves, beside = paths.slots(params), paths.slots(others)
    for path, leaf in leaves.items():
        other = beside.get(path)
        if other is leaf or (is_hole(leaf) and is_hole(other)):
            continue
        if is_hole(leaf) or other is None or is_hole(other) or not _same(leaf, other):
            raise ValueError(
                f'frozen.params of this adapter has {readable.told(other)} at {path!r} with other '
                'values than the bank. Was it made for another base model?'
            )


def _same(leaf: Any, other: Any) -> bool:
    if jax.tree.structure(leaf) != jax.tree.structure(other):
        return False  # One of them is quantised.
    pairs = zip(jax.tree.leaves(leaf), jax.tree.leaves(other), strict=True)
    return all(a.shape == b.shape and bool(jnp.array_equal(a, b)) for a, b in pairs)


def check_shared(own: Any, others: Any, shared: Sequence[bool]) -> None:
    """Raises `ValueError` unless the numbers that a bank holds once are equal in `own`."""
    named, _ = jax.tree_util.tree_flatten_with_path(own)
    for (path, leaf), kept, same in zip(named, jax.tree.leaves(others), shared, strict=True):
        if same and leaf is not kept and not np.array_equal(leaf, kept):
            raise ValueError(
                f'{jax.tree_util.keystr(path)} of this adapter has other values than in the bank, '
                'whose adapters share it; were they made from another seed?'
            )
