"""AdapterHub's VeRA, in and out."""

from typing import Any

import numpy as np

from peftjax.core.transform import About
from peftjax.interop.adapterhub.file import File, Part, Written
from peftjax.interop.adapterhub.lora_config import BLANK, chosen, matrices_of
from peftjax.interop.adapterhub.names import Hub
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found, literal
from peftjax.methods.low_rank.lora import lora
from peftjax.methods.low_rank.vera import drawn_projections, vera


def read_vera(file: File, found: Found) -> Part:
    """VeRA if the trained matrices are still diagonal, otherwise LoRA with the same products.

    The library trains matrices in place of the paper's vectors: `D: [r, r]` and `B: [out, out]`.
    """
    rank, alpha = file.config.whole('r'), file.config.above_zero('alpha')
    shared = f'shared_parameters.{file.name}.lora_'
    a, b = file.take(f'{shared}A', rank, None), file.take(f'{shared}B', None, rank)
    start = f'.loras.{file.name}.vera_'
    modules = found.take({'d': f'{start}D', 'b': f'{start}B'})
    if not modules:
        raise CheckpointError(f'{file.where} holds no VeRA called {file.name!r}')
    for module, arrays in modules.items():
        place = found.place(module)
        layout = found.layout(place.slot.path)
        shapes = [v.shape for v in (a, arrays['d'], b, arrays['b'])]
        needs = [(rank, layout.inputs), (rank, rank)]
        needs += [(layout.outputs, rank), (layout.outputs, layout.outputs)]
        if shapes != needs:
            raise CheckpointError(f'{file.where}: {module} has {shapes}, needs {needs}')
    if all(_diagonal(value) for arrays in modules.values() for value in arrays.values()):
        entries = found.entries(
            'vera',
            {
                module: {'d': np.diag(each['d']) * (alpha / rank), 'b': np.diag(each['b']).copy()}
                for module, each in modules.items()
            },
        )
        return vera(rank=rank, projections=(a.T, b.T), targets=literal(entries)), entries
    entries = found.entries(
        'lora',
        {
            module: {'a': (each['d'] @ a).T, 'b': (each['b'] @ b).T}
            for module, each in modules.items()
        },
    )
    return lora(rank=rank, alpha=alpha, targets=literal(entries)), entries


def _diagonal(matrix: np.ndarray) -> bool:
    return np.array_equal(matrix, np.diag(np.diag(matrix)))


def write_vera(hub: Hub, about: About, adapter: Any, name: str) -> Written:
    """See `read_vera`."""
    arguments, layouts = about.arguments, [entry.layout for entry in adapter.values()]
    rank, sides = arguments['rank'], {(each.inputs, each.outputs) for each in layouts}
    if len(sides) != 1:
        raise ValueError(
            f'the VeRA of AdapterHub shares two matrices of one shape; here are {sorted(sides)}'
        )
    shared = arguments['projections'] or drawn_projections(
        arguments['seed'], rank, layouts[0].inputs, layouts[0].outputs
    )
    ((inputs, outputs),) = sides
    tensors = {
        f'shared_parameters.{name}.lora_A': np.asarray(shared[0])[:inputs].T,
        f'shared_parameters.{name}.lora_B': np.asarray(shared[1])[:, :outputs].T,
    }
    for module, arrays in matrices_of(hub, adapter):
        for ours, theirs in (('d', 'D'), ('b', 'B')):
            tensors[f'{module}.loras.{name}.vera_{theirs}'] = np.diag(arrays[ours])
    fields = {'init_weights': 'vera', 'vera_d': float(arguments['d_initial']), 'vera_b': 0.0}
    return tensors, BLANK | chosen(hub, adapter) | {'r': rank, 'alpha': rank} | fields
