"""AdaLoRA's allocation of rank: an optimiser that sets the least important triplets to zero."""

import dataclasses
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Float32, Integer

from peftjax.core.numbers import is_plain
from peftjax.methods.low_rank.adalora import is_triplet


class AllocationState(NamedTuple):
    """What the allocation carries from step to step.

    Attributes:
        step: int32 [], updates so far.
        sensitivity: running mean of `|w dL/dw|`, for every weight of the triplets.
        uncertainty: running mean of the distance between a step's value and that mean.
        keep: bool `[*stack, r]` for each matrix: whether the last allocation kept the triplet.
        inner: the wrapped optimiser's state.
    """

    step: jax.Array
    sensitivity: list[dict[str, jax.Array]]
    uncertainty: list[dict[str, jax.Array]]
    keep: list[jax.Array]
    inner: optax.OptState


class _Outermost(optax.GradientTransformationExtraArgs):
    """An optimiser that `optax.chain` refuses, since a later part could change its update."""

    def __iter__(self) -> NoReturn:
        raise ValueError(
            'adalora_allocation sets triplets to zero through its update, which a later part of a '
            'chain could change; write adalora_allocation(optax.chain(...), ...)'
        )


def adalora_allocation(
    optimizer: optax.GradientTransformation,
    *,
    target_rank: int,
    total_steps: int,
    initial_steps: int,
    final_steps: int,
    every: int = 1,
    beta1: float = 0.85,
    beta2: float = 0.85,
) -> optax.GradientTransformation:
    r"""Wraps an optimiser so that only the most important of AdaLoRA's triplets stay.

    The importance of a weight `w` is `I = |w dL/dw|`. Its running mean is
    `M <- beta1 M + (1 - beta1) I`, its uncertainty is `U <- beta2 U + (1 - beta2) |I - M|`, and the
    score of the weight is `s = M U`. The score of triplet `i` of a matrix is
    `s(lambda_i) + mean s(P_i) + mean s(Q_i)`.

    An allocation keeps the `budget` triplets with the highest scores in the whole adapter, and sets
    the `lambda` of the others to zero. These may grow again until the next allocation. The budget
    starts with all triplets and stays constant for `initial_steps`. Then it falls as
    `(1 - progress)^3` to `target_rank` per matrix. During the `final_steps` it is constant, and the
    mask of the first of these steps stays in force.

    A pruned `lambda` becomes zero only if you add the update to the adapter unchanged. So
    `optax.chain` refuses to include this optimiser. If other code changes the update, the next step
    finds a pruned `lambda` that is not zero, and makes every `lambda` NaN.

    Args:
        optimizer: turns gradients into updates of the whole adapter; include clipping, the learning
            rate and weight decay here.
        target_rank: mean final rank per matrix; each layer of a stack counts as a matrix.
        total_steps: number of steps of the run.
        initial_steps: number of steps before the budget falls.
        final_steps: number of steps after the budget has fallen.
        every: number of steps between two allocations while the budget falls.
        beta1: decay of the running mean `M`.
        beta2: decay of the uncertainty `U`.

    Returns:
        An optimiser for any adapter that contains triplets; its `update` needs the adapter.

    Raises:
        ValueError: no steps remain between the initial and the final steps; a number is out of
            range; from `optax.chain`, if the chain includes this optimiser; from `init`, the
            adapter holds no triplets, or fewer than `target_rank` per matrix.

    Example:
        >>> tx = peftjax.adalora(init_rank=4, targets=r'hidden')
        >>> adapter, frozen = tx.init(jax.random.key(0), peftjax.testing.tiny_mlp())
        >>> optimizer = adalora_allocation(
        ...     optax.sgd(0.1), target_rank=1, total_steps=3, initial_steps=0, final_steps=1)
        >>> gradient, state = jax.tree.map(jnp.ones_like, adapter), optimizer.init(adapter)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(gradient, state, adapter)
        ...     adapter = optax.apply_updates(adapter, updates)
        >>> int((adapter['hidden/kernel']['lambda'] != 0).sum())
        1

    References:
        Zhang et al., AdaLoRA, 2023 (arXiv:2303.10512): section 3.2 with equations 7 to 11 for the
        scores, section 3.3 with equation 12 for the budget. We measure progress from
        `initial_steps`. As printed, the fraction of equation 12 is less by `final_steps`, and the
        budget would first rise. The importance uses weight and gradient of the same step, as in
        Algorithm 1; the authors' code multiplies the gradient by the weight after the update. If
        scores tie, the earlier triplet stays, so that exactly `budget` triplets remain.
    """
    if not 0 <= initial_steps < total_steps - final_steps or final_steps < 1:
        raise ValueError(
            f'total_steps is {total_steps}, initial_steps {initial_steps}, final_steps '
            f'{final_steps}; write a larger total_steps, with initial_steps of at least 0 and '
            'final_steps of at least 1'
        )
    betas = [each for each in (beta1, beta2) if is_plain(each)]
    if every < 1 or target_rank < 0 or not all(0 <= each < 1 for each in betas):
        raise ValueError(
            'every is at least 1, target_rank at least 0, beta1 and beta2 in [0, 1); got '
            f'{every}, {target_rank}, {beta1}, {beta2}'
        )
    inside = optax.with_extra_args_support(optimizer)
    schedule = _Schedule(target_rank, initial_steps, total_steps - final_steps, every)

    def init(params: Any) -> AllocationState:
        entries = _triplets(params)
        ranks = sorted({entry['lambda'].shape[-1] for entry in entries})
        if not ranks or ranks[0] < target_rank:
            raise ValueError(
                f'the adapter has triplets of ranks {ranks} for a target_rank of {target_rank}; '
                'write a larger init_rank in adalora, or a smaller target_rank'
            )
        keep = [jnp.ones(entry['lambda'].shape, bool) for entry in entries]
        # Separate arrays for the two means, since a step can donate each array only once.
        means = (_zeros(entries), _zeros(entries))
        return AllocationState(jnp.zeros((), jnp.int32), *means, keep, inside.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, AllocationState]:
        if params is None:
            raise ValueError('the allocation needs the adapter: update(gradients, state, adapter)')
        changes, inner = inside.update(updates, state.inner, params, **extra)
        entries = _triplets(params)
        step = state.step + 1
        means = _means(state, entries, _triplets(updates), beta1, beta2)
        scores = [_triplet_scores(each) for each in jax.tree.map(jnp.multiply, *means)]
        chosen = _highest(scores, schedule.budget(step, entries))
        now_allocates = schedule.allocates(step)
        keep = [jnp.where(now_allocates, *each) for each in zip(chosen, state.keep, strict=True)]
        lost = _any_left(entries, schedule.emptied(state.step, state.keep))
        gone = iter(schedule.emptied(step, keep))  # In the adapter's order.

        def change_of(entry: Any, change: Any) -> Any:
            if not is_triplet(entry):
                return change
            values = jnp.where(next(gone), -entry['lambda'], change['lambda'])
            return change.replace(**{'lambda': jnp.where(lost, jnp.nan, values)})

        changes = jax.tree.map(change_of, params, changes, is_leaf=is_triplet)
        return changes, AllocationState(step, *means, keep, inner)

    return _Outermost(init, update)


@dataclasses.dataclass(frozen=True)
class _Schedule:
    """When triplets are chosen, and how many.

    Attributes:
        target_rank: mean rank of a matrix at the end.
        initial: the last step before the descent.
        last: the step of the last allocation, whose mask stays.
        every: steps from one allocation to the next during the descent.
    """

    target_rank: int
    initial: int
    last: int
    every: int

    def budget(self, step: jax.Array, entries: list[Any]) -> jax.Array:
        """How many triplets of the whole adapter an allocation at a step keeps."""
        first = sum(entry['lambda'].size for entry in entries)
        final = self.target_rank * sum(
            entry['lambda'].size // entry['lambda'].shape[-1] for entry in entries
        )
        left = 1 - jnp.clip((step - self.initial) / (self.last - self.initial), 0, 1)
        return jnp.floor((first - final) * left**3 + final).astype(jnp.int32)

    def allocates(self, step: jax.Array) -> jax.Array:
        descends = (step > self.initial) & (step < self.last)
        return (descends & (step % self.every == 0)) | (step == self.last)

    def emptied(self, step: jax.Array, keep: list[jax.Array]) -> list[jax.Array]:
        """Which `lambda` the update of a step sets to zero."""
        return [(self.allocates(step) | (step > self.last)) & ~each for each in keep]


def _means(
    state: AllocationState, entries: list[Any], slopes: list[Any], beta1: float, beta2: float
) -> tuple[list[dict[str, jax.Array]], list[dict[str, jax.Array]]]:
    """The running means `M` and `U`, with this step's `I = |w dL/dw|`."""
    now = [
        jax.tree.map(_sensitivity, dict(entry), dict(slope))
        for entry, slope in zip(entries, slopes, strict=True)
    ]
    sensitivity = jax.tree.map(
        lambda mean, value: beta1 * mean + (1 - beta1) * value, state.sensitivity, now
    )
    uncertainty = jax.tree.map(
        lambda mean, value, center: beta2 * mean + (1 - beta2) * jnp.abs(value - center),
        state.uncertainty,
        now,
        sensitivity,
    )
    return sensitivity, uncertainty


def _triplets(tree: Any) -> list[Any]:
    return [each for each in jax.tree.leaves(tree, is_leaf=is_triplet) if is_triplet(each)]


def _any_left(entries: list[Any], gone: list[jax.Array]) -> Bool[jax.Array, '']:
    """Whether a pruned `lambda` is not zero."""
    left = [
        ((entry['lambda'] != 0) & each).any() for entry, each in zip(entries, gone, strict=True)
    ]
    return jnp.stack(left).any()


def _zeros(entries: list[Any]) -> list[dict[str, jax.Array]]:
    return [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), dict(each)) for each in entries]


def _sensitivity(
    weight: Float[jax.Array, '*shape'], slope: Float[jax.Array, '*shape']
) -> Float32[jax.Array, '*shape']:
    return jnp.abs(weight.astype(jnp.float32) * slope.astype(jnp.float32))


def _triplet_scores(
    scores: dict[str, Float32[jax.Array, '...']],
) -> Float32[jax.Array, '*stack rank']:
    """The score of each triplet, `[*stack, r]`."""
    return scores['lambda'] + scores['p'].mean(-2) + scores['q'].mean(-1)


def _highest(
    scores: list[Float32[jax.Array, '...']], count: Integer[jax.Array, '']
) -> list[Bool[jax.Array, '...']]:
    """Which of all the scores are among the `count` highest."""
    flat = jnp.concatenate([each.ravel() for each in scores])
    places = jnp.argsort(jnp.argsort(-flat, stable=True), stable=True)
    ends = [0]
    for each in scores:
        ends.append(ends[-1] + each.size)
    return [
        (places[start:end] < count).reshape(each.shape)
        for each, start, end in zip(scores, ends[:-1], ends[1:], strict=True)
    ]
