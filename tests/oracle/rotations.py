"""OFT's variants, BOFT and RandLoRA as Hugging Face's peft writes them."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.core import paths
from tests.oracle.cases import Case, Converted, Tensors
from tests.oracle.names import entry, kernel_of, modules_of, with_saved


def _oft(case: Case) -> Converted:
    series = case.config['use_cayley_neumann']
    modules = {name: kernel_of(case, name) for name in modules_of(case, '.oft_R.weight')}
    # Its series is that of the transposed rotation, so that signs change.
    sign = -1.0 if series else 1.0

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        return {
            leaf: entry(case, leaf, {'q': sign * tensors[f'{name}.oft_R.weight']})
            for name, leaf in modules.items()
        }

    transform = peftjax.oft(
        block_size=case.config['oft_block_size'],
        block_share=case.config['block_share'],
        eps=case.config['eps'] if case.config['coft'] else None,
        neumann_terms=case.config['num_cayley_neumann_terms'] if series else None,
        targets=tuple(modules.values()),
    )
    return with_saved(case, Converted(transform, convert))


def _boft(case: Case) -> Converted:
    modules = {name: kernel_of(case, name) for name in modules_of(case, '.boft_R')}
    # One factor whatever the config says: see peftjax.boft.
    factors, _, size, _ = case.tensors[f'{next(iter(modules))}.boft_R'].shape

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        return {
            leaf: entry(
                case,
                leaf,
                {'q': tensors[f'{name}.boft_R'], 's': tensors[f'{name}.boft_s'][:, 0]},
            )
            for name, leaf in modules.items()
        }

    transform = peftjax.boft(
        block_size=size, factors=factors, whole_blocks=True, targets=tuple(modules.values())
    )
    return with_saved(case, Converted(transform, convert))


def _randlora(case: Case) -> Converted:
    modules = {name: kernel_of(case, name) for name in modules_of(case, '.randlora_lambda')}
    rank = case.config['r']

    def bases(name: str, leaf: str) -> tuple[np.ndarray, np.ndarray]:
        layout = case.model.sites.weights[leaf].layout
        assert layout is not None
        short, long = sorted((layout.inputs, layout.outputs))
        count = -(-short // rank)
        a = case.tensors[f'{name}.randlora_A'][:, 0, :short]
        b = case.tensors[f'{name}.randlora_B'][:long, :count]
        # Its columns are numbered base by base, the rows of A that they meet rank by rank.
        return a, b.reshape(long, rank, count).transpose(2, 0, 1)

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        return {
            leaf: entry(
                case,
                leaf,
                {'l': tensors[f'{name}.randlora_lambda'].T, 'g': tensors[f'{name}.randlora_gamma']},
            )
            for name, leaf in modules.items()
        }

    transform = peftjax.randlora(
        rank=rank,
        alpha=case.config['randlora_alpha'],
        bases={leaf: bases(name, leaf) for name, leaf in modules.items()},
        targets=tuple(modules.values()),
    )
    return with_saved(case, Converted(transform, convert))


def _road(case: Case) -> Converted:
    modules = {name: kernel_of(case, name) for name in modules_of(case, '.road_theta')}

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        found = {}
        for name, leaf in modules.items():
            biased = leaf.replace('kernel', 'bias') in case.model.sites.weights
            arrays = {
                'theta': tensors[f'{name}.road_theta'],
                'alpha_and_bias' if biased else 'alpha': tensors[f'{name}.road_alpha'],
            }
            found[leaf] = entry(case, leaf, arrays)
        return found

    transform = peftjax.road(
        variant=int(case.config['variant'].removeprefix('road_')),
        group_size=case.config['group_size'],
        targets=tuple(modules.values()),
    )
    return with_saved(case, Converted(transform, convert))


def _psoft(case: Case) -> Converted:
    modules = {name: kernel_of(case, name) for name in modules_of(case, '.psoft_R.weight')}
    names = {'k': 'weight', 'a': 'vector_a', 'b': 'vector_b'}

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        return {
            leaf: entry(
                case,
                leaf,
                {ours: tensors[f'{name}.psoft_R.{theirs}'] for ours, theirs in names.items()},
            )
            for name, leaf in modules.items()
        }

    return with_saved(
        case,
        Converted(
            peftjax.psoft({leaf: _subspace(case, name, leaf) for name, leaf in modules.items()}),
            convert,
        ),
    )


def _subspace(case: Case, name: str, leaf: str) -> tuple[np.ndarray, np.ndarray]:
    """The singular vectors that it trained with, which are in no adapter of its own."""
    beside = case.folder / 'subspaces.npz'
    if beside.is_file():
        with np.load(beside) as file:
            return file[f'{name}.p'], file[f'{name}.q']
    # Decomposed anew, as it does when it loads; the signs can be those of another LAPACK.
    layout = case.model.sites.weights[leaf].layout
    assert layout is not None
    matrix = layout.to_matrix(paths.flatten(case.model.params)[leaf])
    u, s, vt = map(np.asarray, jnp.linalg.svd(matrix.T, full_matrices=False))
    rank = case.config['r']
    return vt[:rank].T, (u[:, :rank] * s[:rank]).T


CONVERTERS: dict[str, Callable[[Case], Converted]] = {
    'oft': _oft,
    'oft_coft_share': _oft,
    'oft_neumann': _oft,
    'boft': _boft,
    'boft_butterfly2': _boft,
    'randlora': _randlora,
    'road': _road,
    'road_2': _road,
    'road_4': _road,
    'psoft': _psoft,
}
