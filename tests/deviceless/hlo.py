"""Reads the text of an optimised program: the arrays it holds, its products, its collectives."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r'^(?:ENTRY )?%?([\w.-]+) \(.*\{$', re.MULTILINE)
_FUSED = re.compile(r'fusion\(.*?calls=%([\w.-]+)')
_LINE = re.compile(r'^\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\(([^\n]*)$', re.MULTILINE)
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_OPERAND = re.compile(r'%([\w.-]+)')


class Array(NamedTuple):
    """An array of the program: its dtype by XLA's name, such as 'bf16', and its shape."""

    dtype: str
    shape: tuple[int, ...]


class Instruction(NamedTuple):
    """One instruction. fused: it is inside of a fusion, so that its result need not be held."""

    operation: str
    results: list[Array]
    operands: list[Array]
    fused: bool


def instructions(program: str) -> Iterator[Instruction]:
    """All instructions of a program."""
    fused = set(_FUSED.findall(program))
    heads = list(_HEAD.finditer(program))
    ends = [*(head.start() for head in heads[1:]), len(program)]
    for head, end in zip(heads, ends, strict=True):
        lines = list(_LINE.finditer(program, head.end(), end))
        types = {line[1]: _arrays(line[2]) for line in lines}
        for line in lines:
            names = _OPERAND.findall(line[4].partition(')')[0])
            operands = [array for name in names for array in types.get(name, [])]
            yield Instruction(line[3], types[line[1]], operands, head[1] in fused)


def held(program: str) -> set[Array]:
    """The arrays that stand in memory at some time: results outside of fusions."""
    return {
        array
        for each in instructions(program)
        if not each.fused and each.operation not in ('bitcast', 'get-tuple-element', 'tuple')
        for array in each.results
    }


def products(program: str) -> list[list[Array]]:
    """The operands of every matrix product, those of libraries among them."""
    return [
        each.operands
        for each in instructions(program)
        if each.operation in ('dot', 'convolution')
        or (each.operation == 'custom-call' and len(each.operands) == 2)
    ]


def gathered(program: str) -> set[Array]:
    """What devices gather from each other: operands and results."""
    return {
        array
        for each in instructions(program)
        if each.operation in ('all-gather', 'all-gather-start')
        for array in each.results
    }


def _arrays(text: str) -> list[Array]:
    return [
        Array(dtype, tuple(int(size) for size in sizes.split(',') if size))
        for dtype, sizes in _ARRAY.findall(text)
    ]
