"""The head of a classifier beside an adapter that does not train it.

For the task types of classifiers the library copies the head and looks for the copy in the file. So
an adapter on the body alone has no task type. If it needs one (a prompt), or if the base of others
lacks this head, the file holds the head unchanged.
"""

from collections.abc import Mapping
from typing import Any

from peftjax.core import paths
from peftjax.core.model import Model
from peftjax.interop.peft.names import ROOT, Names

_HEADED = frozenset({'SEQ_CLS', 'TOKEN_CLS'})


def frozen_head(
    model: Model,
    names: Names,
    copies: Mapping[str, Any],
    written: tuple[Mapping[str, Any], Mapping[str, Any]],
    task_type: str | None,
) -> dict[str, Any]:
    """The leaves of the head that go into the file although they do not train.

    Args:
        copies: the leaves that train whole.
        written: tensors and fields of the method.
        task_type: as the caller asks for it.

    Raises:
        ValueError: the head is adapted, and the file would need its own numbers too.
    """
    tensors, fields = written
    if not names.head or any(path in copies for path in names.head):
        return {}
    fresh = sorted(set(names.head) & set(model.fresh))
    if not (fresh or task_type in _HEADED or 'num_virtual_tokens' in fields):
        return {}
    modules = tuple(f'{ROOT}{name}.' for name in names.heads)
    if any(name.startswith(modules) for name in tensors):
        raise ValueError(
            f'{names.head} are adapted, and a file of peft cannot hold their own values as well'
            + (
                f', which are new in this model ({fresh}); train the head whole, by select'
                if fresh
                else f', which task_type {task_type!r} looks for; leave task_type out'
            )
        )
    leaves = paths.flatten(model.params)
    return {path: leaves[path] for path in names.head}


def task_of(names: Names, fields: Mapping[str, Any], task_type: str | None) -> str | None:
    """The task type: as asked for, or of the model if the file holds the head that it needs."""
    if task_type is not None:
        return task_type
    held = not names.head or set(names.heads) & set(fields.get('modules_to_save') or ())
    return names.task if held else None
