"""Merging: deltas as values, rules as pure functions of them, and the spaces they work in."""

from peftjax.merging.angles import karcher_mean, model_stock, multi_slerp, slerp
from peftjax.merging.changes import Change, Delta, Factored, Full, dense, split
from peftjax.merging.coefficients import Soup, adamerging, entropy, greedy_soup
from peftjax.merging.deltas import apply_delta, delta, delta_of
from peftjax.merging.extract import Extracted, to_lora
from peftjax.merging.fusion import adapter_fusion
from peftjax.merging.measures import (
    cosines,
    heat_map,
    intruder_dimensions,
    sign_conflicts,
    table,
)
from peftjax.merging.mixtures import arrow, x_lora
from peftjax.merging.signs import breadcrumbs, dare, della, sce, ties
from peftjax.merging.spaces import Cores, Rule, core_space, cores, from_cores
from peftjax.merging.span import average, weighted_sum
from peftjax.merging.statistics import fisher, regmean
from peftjax.merging.trimming import dropped, trimmed

__all__ = [
    'Change',
    'Cores',
    'Delta',
    'Extracted',
    'Factored',
    'Full',
    'Rule',
    'Soup',
    'adamerging',
    'adapter_fusion',
    'apply_delta',
    'arrow',
    'average',
    'breadcrumbs',
    'core_space',
    'cores',
    'cosines',
    'dare',
    'della',
    'delta',
    'delta_of',
    'dense',
    'dropped',
    'entropy',
    'fisher',
    'from_cores',
    'greedy_soup',
    'heat_map',
    'intruder_dimensions',
    'karcher_mean',
    'model_stock',
    'multi_slerp',
    'regmean',
    'sce',
    'sign_conflicts',
    'slerp',
    'split',
    'table',
    'ties',
    'to_lora',
    'trimmed',
    'weighted_sum',
    'x_lora',
]
