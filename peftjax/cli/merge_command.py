"""`peftjax merge`: adapters merged into their base, or into one LoRA."""

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

import peftjax
from peftjax import merging
from peftjax.cli.parser import Parser
from peftjax.cli.source import (
    ADAPTER,
    BASE,
    RUN,
    Source,
    add_force,
    add_non_finite,
    add_reading,
    add_which,
    check_target,
    open_source,
)

_Rule = Callable[[Sequence[merging.Delta], argparse.Namespace], merging.Delta]

RULES: dict[str, _Rule] = {
    'average': lambda deltas, given: merging.average(deltas, given.weights),
    'sum': lambda deltas, given: merging.weighted_sum(deltas, _asked(given, 'weights')),
    'ties': lambda deltas, given: merging.ties(deltas, weights=given.weights, **_density(given)),
    'dare': lambda deltas, given: merging.dare(
        deltas, _key(given), density=_asked(given, 'density'), weights=given.weights
    ),
    'della': lambda deltas, given: merging.della(
        deltas, _key(given), density=_asked(given, 'density'), weights=given.weights
    ),
    'breadcrumbs': lambda deltas, given: merging.breadcrumbs(
        deltas, weights=given.weights, **_density(given)
    ),
    'sce': lambda deltas, given: merging.sce(deltas, **_density(given)),
    'karcher': lambda deltas, given: merging.karcher_mean(deltas, given.weights),
    'model_stock': lambda deltas, given: merging.model_stock(deltas),
}
_IGNORED = {
    'weights': ('sce', 'model_stock'),
    'density': ('average', 'sum', 'karcher', 'model_stock'),
    'seed': tuple(name for name in RULES if name not in ('dare', 'della')),
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument('base', help=f'{BASE}, but no .gguf file; or {RUN}')
    parser.add_argument(
        'adapters', nargs='*', metavar='adapter', help=f'{ADAPTER}; several, or none for a run'
    )
    parser.add_argument('out', help='the folder to write; transformers and peftjax.load read it')
    parser.add_argument(
        '--dtype',
        default='source',
        choices=('source', 'float32', 'bfloat16', 'float16'),
        help="the dtype of the file; the default is the base's own",
    )
    add_force(parser)
    several = parser.add_argument_group('several adapters', 'see docs/merging.md')
    several.add_argument('--rule', choices=tuple(RULES), help='how they are merged (average)')
    several.add_argument(
        '--weights', type=_numbers, metavar='W,W', help='one number for all adapters, or for each'
    )
    several.add_argument('--density', type=float, metavar='D', help='the share of entries to keep')
    several.add_argument('--seed', type=int, metavar='N', help='the seed of rules that draw (0)')
    several.add_argument(
        '--core', action='store_true', help='merge in Core Space; for LoRA and its relatives'
    )
    several.add_argument(
        '--without',
        metavar='PATTERN',
        help='parameters of the base that stay as they are, such as heads',
    )
    several.add_argument(
        '--rank', type=int, metavar='R', help="write a LoRA of this rank in peft's files instead"
    )
    add_which(parser)
    add_non_finite(parser)
    add_reading(parser)


def _numbers(text: str) -> float | list[float]:
    found = [float(each) for each in text.split(',')]
    return found if len(found) > 1 else found[0]


def run(arguments: argparse.Namespace) -> None:
    """Writes the checkpoint, or the LoRA, and prints its folder."""
    check_target(arguments.out, arguments.force)
    first, *others = arguments.adapters or [None]
    source = _open(arguments, first)
    if _rule_is_asked(arguments):
        # Only one base is in memory at a time: the other sources are reduced to their deltas.
        deltas = [_delta(source), *(_delta(_open(arguments, each)) for each in others)]
        merged = merged_delta(deltas, arguments)
        if arguments.rank is not None:
            found = merging.to_lora(merged, source.model, rank=arguments.rank)
            peftjax.save_adapter(arguments.out, source.model, found.transform, found.adapter)
            print(arguments.out)
            return
        params = merging.apply_delta(peftjax.dequantize(source.model.params), merged)
    else:
        params = peftjax.dequantize(source.transform.merge(source.adapter, source.frozen))
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'read .* with peftjax alone')  # It is printed below.
        peftjax.save_checkpoint(
            arguments.out,
            source.model,
            params,
            source.base,
            dtype=arguments.dtype,
            labels=source.labels,
            replace_source=arguments.force,
        )
    print(arguments.out)
    if source.model.only_here:
        print(f'read it with peftjax alone: {source.model.only_here}')


def _delta(source: Source) -> merging.Delta:
    return merging.delta(source.model, source.transform, source.adapter, source.frozen)


def _open(arguments: argparse.Namespace, adapter: str | None) -> Source:
    return open_source(argparse.Namespace(**{**vars(arguments), 'adapter': adapter}), scan=False)


def _rule_is_asked(given: argparse.Namespace) -> bool:
    return (
        len(given.adapters) > 1
        or given.core
        or any(getattr(given, name) is not None for name in ('rule', 'rank', 'without', *_IGNORED))
    )


def merged_delta(deltas: Sequence[merging.Delta], given: argparse.Namespace) -> merging.Delta:
    """The deltas of all adapters, merged by the rule.

    Raises:
        ValueError: the rule does not take a flag, or needs one that is missing.
        TargetError: `--without` matches no leaf that an adapter changes.
    """
    name = given.rule or 'average'
    for flag, rules in _IGNORED.items():
        if name in rules and getattr(given, flag) is not None:
            raise ValueError(f'--rule {name} takes no --{flag}; leave it out')
    if given.without is not None:
        names = {path: change for each in deltas for path, change in each.items()}
        left = merging.split(names, given.without)[1]
        deltas = [{path: each[path] for path in each if path in left} for each in deltas]

    def rule(deltas: Sequence[merging.Delta]) -> merging.Delta:
        return RULES[name](deltas, given)

    return (merging.core_space(rule) if given.core else rule)(deltas)


def _asked(given: argparse.Namespace, flag: str) -> Any:
    value = getattr(given, flag)
    if value is None:
        raise ValueError(f'--rule {given.rule} needs --{flag}')
    return value


def _density(given: argparse.Namespace) -> dict[str, Any]:
    return {} if given.density is None else {'density': given.density}


def _key(given: argparse.Namespace) -> jax.Array:
    return jax.random.key(given.seed or 0)
