"""One cell of the table: a method on a model, by every law."""

import peftjax
from tests.equalities.laws import LAWS, adapted
from tests.equalities.methods import make
from tests.equalities.models import MODELS

REFUSALS = (ValueError, peftjax.TargetError)


def cell(method: str, name: str) -> dict[str, tuple[str, str]]:
    """For each law `('h', '')`, `('-', '')`, `('r', the refusal)` or `('X', what is wrong)`."""
    model = MODELS[name]()
    try:
        here = adapted(name, model, make(method, name, model))
    except REFUSALS as error:
        return {law: ('r', str(error)) for law in LAWS}
    found = {}
    for law, holds in LAWS.items():
        try:
            found[law] = ('h', '') if holds(here) else ('-', '')
        except REFUSALS as error:
            found[law] = ('r', str(error).splitlines()[0])
        except AssertionError as error:
            found[law] = ('X', str(error)[:200])
    return found
