"""Plans side by side, as text."""

from collections.abc import Mapping

from peftjax.plan.estimate import Plan


def table(plans: Mapping[str, Plan]) -> str:
    """Plans side by side, one row each: MiB per device, FLOPs and least time of a step.

    Below the rows are the kernels of each program that was compiled, see `kernels`.

    Example:
        >>> one = Plan(8, 1, 1, 10**6, 10**3, 4 * 10**6, 4000, 4000, 8000, 10**7, 1e9)
        >>> print(table({'lora': one}).splitlines()[0])
        MiB a device  trainable  weights  adapter  gradients  optimizer  activations  total  TFLOP
    """
    compiled = any(each.compiled for each in plans.values())
    bounded = any(each.machine for each in plans.values())
    head = ['MiB a device', 'trainable', 'weights', 'adapter', 'gradients', 'optimizer']
    head += ['activations', *(['arguments', 'scratch'] if compiled else []), 'total', 'TFLOP']
    head += ['ms at least', 'fits', 'largest batch'] if bounded else []
    rows = [head]
    for name, each in plans.items():
        sizes = [each.weights, each.adapter, each.gradients, each.optimizer, each.activations]
        sizes += [each.compiled.arguments, each.compiled.temporary] if each.compiled else []
        row = [name, f'{each.trainable:,}', *(f'{size / 2**20:,.1f}' for size in sizes)]
        row += [f'{each.total / 2**20:,.1f}', f'{each.flops / 1e12:,.3f}']
        if each.seconds is not None:
            row += [f'{1e3 * each.seconds:,.1f}', 'yes' if each.fits else 'no']
            row += [f'{each.largest_batch:,}']
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        '  '.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    for name, each in plans.items():
        if each.compiled:
            lines.append(f'kernels of {name}: {_kernels(each.compiled.kernels)}')
    return '\n'.join(lines)


def _kernels(found: Mapping[str, int]) -> str:
    return ', '.join(f'{count} {name}' for name, count in found.items()) or 'none by name'
