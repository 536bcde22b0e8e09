"""The contract that every method keeps, as checks for your own transforms too.

`check(case)` runs all laws. Each law is a function of a `Case`, so tests can be parametrised by
`LAWS`.
"""

from peftjax.testing.case import Case, Step
from peftjax.testing.examples import perturb, tiny_mlp
from peftjax.testing.laws import (
    LAWS,
    check,
    check_composition,
    counts_match,
    dense_only_if_said,
    forward_cost_matches,
    gradients_agree,
    identity_at_init,
    init_is_abstract,
    keys_are_stable,
    merge_keeps_structure,
    other_methods_are_refused,
    routes_agree,
    saving_is_exact,
    second_step_compiles_nothing,
    sharding_keeps_numbers,
    vmaps_over_keys,
    wrong_target_raises,
)

__all__ = [
    'Case',
    'LAWS',
    'Step',
    'check',
    'check_composition',
    'counts_match',
    'dense_only_if_said',
    'forward_cost_matches',
    'gradients_agree',
    'identity_at_init',
    'init_is_abstract',
    'keys_are_stable',
    'merge_keeps_structure',
    'other_methods_are_refused',
    'perturb',
    'routes_agree',
    'saving_is_exact',
    'second_step_compiles_nothing',
    'sharding_keeps_numbers',
    'tiny_mlp',
    'vmaps_over_keys',
    'wrong_target_raises',
]
