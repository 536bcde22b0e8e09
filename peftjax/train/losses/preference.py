r"""Losses of preferences: DPO, IPO, ORPO, KTO and SimPO, as functions of log-probabilities.

Letters: `x` a prompt, :math:`y_w` its chosen answer, :math:`y_l` its rejected one, :math:`\pi` the
model that is trained, :math:`\pi_0` the reference. The log-probability of an answer is the sum over
its tokens, :math:`\log\pi(y|x) = \sum_t \log\pi(y_t | x, y_{<t})`, without the tokens of the
prompt. ORPO and SimPO take the mean over the tokens in place of the sum.

Every loss is one number for each pair, `[B]` float32, so that a batch can weight its pairs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Shaped

import peftjax
from peftjax.core.shapes import HostArray


def answer_log_probs(
    scores: peftjax.TokenScores, mask: Shaped[HostArray, 'B T'], *, mean: bool = False
) -> Float32[jax.Array, ' B']:
    r"""The log-probability of each row's answer, `[B]` float32: the sum over its tokens.

    Args:
        scores: the scores that a decoder gives its targets.
        mask: nonzero where the target is a token of the answer.
        mean: divide by the number of tokens; an answer without tokens has 0.

    Example:
        >>> scores = peftjax.TokenScores(
        ...     jnp.asarray([[1.0, 2.0, 9.0]]), jnp.zeros((1, 3), bool), jnp.ones((1, 3), bool))
        >>> answer_log_probs(scores, jnp.asarray([[1, 1, 0]])).tolist()
        [-3.0]
        >>> answer_log_probs(scores, jnp.asarray([[1, 1, 0]]), mean=True).tolist()
        [-1.5]
    """
    counted = scores.counted & mask.astype(bool)
    sums = -jnp.where(counted, scores.losses.astype(jnp.float32), 0.0).sum(-1)
    return sums / jnp.maximum(counted.sum(-1, dtype=jnp.float32), 1.0) if mean else sums


def dpo_loss(
    chosen: Float[jax.Array, ' B'],
    rejected: Float[jax.Array, ' B'],
    reference_chosen: Float[jax.Array, ' B'],
    reference_rejected: Float[jax.Array, ' B'],
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float32[jax.Array, ' B']:
    r"""Direct preference optimisation: a logistic loss of the margin between log-ratios.

    .. math::
        h = \log\frac{\pi(y_w|x)}{\pi_0(y_w|x)} - \log\frac{\pi(y_l|x)}{\pi_0(y_l|x)}, \qquad
        L = -(1-\epsilon)\log\sigma(\beta h) - \epsilon\log\sigma(-\beta h)

    Args:
        chosen, rejected: sums of log-probabilities under the model.
        reference_chosen, reference_rejected: under the reference.
        beta: how strongly the model is held to the reference.
        label_smoothing: :math:`\epsilon`, the share of pairs that are taken to be the wrong way
            round (conservative DPO); 0 is DPO.

    Returns:
        `[B]` float32.

    Example:
        >>> equal = jnp.asarray([-3.0])
        >>> round(float(dpo_loss(equal, equal, equal, equal)[0]), 4)  # log 2
        0.6931

    Source: Rafailov et al. 2023 (arXiv:2305.18290), equation 7; label smoothing: Mitchell, A note
    on DPO with noisy preferences, 2023, equation 3. The same as `loss_type='sigmoid'` of TRL.
    """
    margin = beta * log_ratio_margin(chosen, rejected, reference_chosen, reference_rejected)
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1.0 - label_smoothing) * right - label_smoothing * wrong


def ipo_loss(
    chosen: Float[jax.Array, ' B'],
    rejected: Float[jax.Array, ' B'],
    reference_chosen: Float[jax.Array, ' B'],
    reference_rejected: Float[jax.Array, ' B'],
    beta: float = 0.1,
) -> Float32[jax.Array, ' B']:
    r"""Identity preference optimisation: the squared distance of the margin from a target.

    .. math:: L = \left(h - \frac{1}{2\tau}\right)^2

    with `h` of `dpo_loss`. The margin stops growing at the target, however certain a pair is.

    Args:
        chosen, rejected, reference_chosen, reference_rejected: sums, as for `dpo_loss`.
        beta: :math:`\tau` of the paper; not 0.

    Returns:
        `[B]` float32.

    Example:
        >>> equal = jnp.asarray([-3.0])
        >>> float(ipo_loss(equal, equal, equal, equal, beta=0.25)[0])
        4.0

    Source: Azar et al. 2023 (arXiv:2310.12036), equation 17, whose log-probabilities are sums.
    Later versions of TRL divide each log-probability by the number of its tokens first.
    """
    margin = log_ratio_margin(chosen, rejected, reference_chosen, reference_rejected)
    return (margin - 1.0 / (2.0 * beta)) ** 2


def orpo_loss(
    chosen: Float[jax.Array, ' B'], rejected: Float[jax.Array, ' B'], beta: float = 0.1
) -> Float32[jax.Array, ' B']:
    r"""Odds ratio preference optimisation: cross-entropy of the chosen answer plus an odds ratio.

    .. math::
        L = -\log P(y_w|x) - \lambda\log\sigma\left(\log\frac{P(y_w|x)}{1-P(y_w|x)} -
        \log\frac{P(y_l|x)}{1-P(y_l|x)}\right)

    with :math:`\log P(y|x)` the mean of the log-probabilities of the tokens.

    Args:
        chosen, rejected: means of log-probabilities under the model.
        beta: :math:`\lambda` of the paper.

    Returns:
        `[B]` float32.

    Example:
        >>> half = jnp.log(jnp.asarray([0.5]))
        >>> round(float(orpo_loss(half, half, beta=1.0)[0]), 4)  # 2 log 2
        1.3863

    Source: Hong et al. 2024 (arXiv:2403.07691), sections 4.1 and 4.2. In TRL's code the
    cross-entropy covers the prompt too and is a mean over the tokens of the whole batch; here each
    answer counts once, as in the paper.
    """
    odds = log_odds(chosen) - log_odds(rejected)
    return -chosen.astype(jnp.float32) - beta * jax.nn.log_sigmoid(odds)


def simpo_loss(
    chosen: Float[jax.Array, ' B'],
    rejected: Float[jax.Array, ' B'],
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Float32[jax.Array, ' B']:
    r"""Simple preference optimisation: mean log-probabilities as rewards, and a target margin.

    .. math::
        L = -\log\sigma\left(\frac{\beta}{|y_w|}\log\pi(y_w|x) - \frac{\beta}{|y_l|}\log\pi(y_l|x)
        - \gamma\right)

    Args:
        chosen, rejected: means of log-probabilities under the model.
        beta: scale of the rewards.
        gamma: by how much the reward of the chosen answer should be greater.

    Returns:
        `[B]` float32.

    Example:
        >>> equal = jnp.asarray([-3.0])
        >>> round(float(simpo_loss(equal, equal, gamma=0.0)[0]), 4)  # log 2
        0.6931

    Source: Meng et al. 2024 (arXiv:2405.14734), equation 6. TRL takes the same gamma, as
    `simpo_gamma`, and adds the cross-entropy of the chosen answer if its `cpo_alpha` is not 0.
    """
    margin = beta * (chosen.astype(jnp.float32) - rejected.astype(jnp.float32))
    return -jax.nn.log_sigmoid(margin - gamma)


def kto_loss(
    log_ratios: Float[jax.Array, ' B'],
    desirable: Bool[HostArray, ' B'],
    reference_point: Float[jax.Array, ''],
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float32[jax.Array, ' B']:
    r"""Kahneman-Tversky optimisation: single answers that are good or bad, against a reference.

    .. math::
        r = \log\frac{\pi(y|x)}{\pi_0(y|x)}, \qquad L = \begin{cases}
        \lambda_D\,(1 - \sigma(\beta (r - z_0))) & y \text{ desirable} \\
        \lambda_U\,(1 - \sigma(\beta (z_0 - r))) & y \text{ undesirable} \end{cases}

    Args:
        log_ratios: `r`, of sums of log-probabilities.
        desirable: whether each answer is a good one.
        reference_point: :math:`z_0` of `kto_reference_point`.
        beta: how strongly the model is held to the reference.
        desirable_weight, undesirable_weight: :math:`\lambda_D, \lambda_U`; the paper keeps the
            ratio of :math:`\lambda_D n_D` to :math:`\lambda_U n_U` between 1 and 4/3.

    Returns:
        `[B]` float32.

    Example:
        >>> ratios, good = jnp.zeros(2), jnp.asarray([True, False])
        >>> kto_loss(ratios, good, jnp.float32(0.0)).tolist()
        [0.5, 0.5]

    Source: Ethayarajh et al. 2024 (arXiv:2402.01306), equations 7 and 8, as
    :math:`\lambda_y - v(x, y)`. The same as `loss_type='kto'` of TRL.
    """
    gain = beta * (log_ratios.astype(jnp.float32) - reference_point.astype(jnp.float32))
    signed = jnp.where(desirable, gain, -gain)
    weights = jnp.where(desirable, jnp.float32(desirable_weight), jnp.float32(undesirable_weight))
    return weights * jax.nn.sigmoid(-signed)


def kto_reference_point(
    log_ratios: Float[jax.Array, ' B'], weights: Float[HostArray, ' B']
) -> Float32[jax.Array, '']:
    r"""KTO's estimate of how far the model is from the reference, without a gradient.

    .. math:: z_0 = \max\left(0, \frac{1}{m}\sum_i \log\frac{\pi(y_{i+1}|x_i)}{\pi_0(y_{i+1}|x_i)}
        \right)

    Args:
        log_ratios: of prompts with the answers of other prompts.
        weights: of the rows; a row of weight 0 does not count.

    Returns:
        A scalar, float32; 0 if no row counts.

    Example:
        >>> float(kto_reference_point(jnp.asarray([1.0, 3.0, 99.0]), jnp.asarray([1.0, 1.0, 0.0])))
        2.0

    Source: Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.1.
    """
    weights = jnp.asarray(weights, jnp.float32)
    total = jnp.where(weights > 0, log_ratios.astype(jnp.float32) * weights, 0.0).sum()
    mean = total / jnp.where(weights.sum() > 0, weights.sum(), 1.0)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def log_ratio_margin(
    chosen: Float[jax.Array, ' B'],
    rejected: Float[jax.Array, ' B'],
    reference_chosen: Float[jax.Array, ' B'],
    reference_rejected: Float[jax.Array, ' B'],
) -> Float32[jax.Array, ' B']:
    """The margin `h` of `dpo_loss`, `[B]` float32.

    Example:
        >>> one, two = jnp.asarray([-1.0]), jnp.asarray([-2.0])
        >>> log_ratio_margin(one, two, two, two).tolist()
        [1.0]
    """
    wide = [each.astype(jnp.float32) for each in (chosen, rejected)]
    base = [each.astype(jnp.float32) for each in (reference_chosen, reference_rejected)]
    return (wide[0] - base[0]) - (wide[1] - base[1])


def log_odds(log_probs: Float[jax.Array, ' B']) -> Float32[jax.Array, ' B']:
    r"""`log(p / (1 - p))` of `p = exp(log_probs)`, `[B]` float32, finite where `p` rounds to 1.

    Example:
        >>> round(float(log_odds(jnp.log(jnp.asarray([0.75])))[0]), 4)  # log 3
        1.0986
    """
    # With p = 1 the odds are infinite: the nearest number below 0 stands for it.
    below = jnp.minimum(log_probs.astype(jnp.float32), -jnp.finfo(jnp.float32).eps)
    return below - jnp.log(-jnp.expm1(below))
