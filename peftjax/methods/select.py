"""Selective methods: train some of the base's own leaves (BitFit, LayerNorm tuning, heads)."""

from peftjax.core import paths
from peftjax.core.base import PeftTransform, described
from peftjax.core.leafwise import leafwise


@described
def select(targets: paths.Targets) -> PeftTransform:
    r"""Trains the chosen leaves of the base themselves; all others stay frozen.

    The adapter holds a copy `w'` of each chosen leaf `w`, and the model runs with `w'` in its
    place. BitFit is `select(r'.*/bias')`, the tuning of layer norms
    `select(r'.*norm/(scale|bias)')`, a new head `select(r'classifier/.*')`. It adds
    no FLOPs forward; the gradient of a chosen kernel is dense, `2 T in out` in a step. It merges.

    Args:
      targets: regular expressions, full match on leaf paths.

    Returns:
      A transform whose adapter is `{leaf path: leaf}`.

    Raises:
      TargetError: from `init`, if a pattern matches no leaf.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> adapter = peftjax.select(r'.*/bias').init(jax.random.key(0), mlp)
    >>> {path: leaf.shape for path, leaf in adapter.items()}
    {'hidden/bias': (8,), 'out/bias': (3,)}

    References:
      Ben Zaken et al., BitFit, 2021 (arXiv:2106.10199), section 3; Zhao et al., Tuning LayerNorm in
      Attention, 2023 (arXiv:2312.11420), section 3.
    """

    return leafwise(
        'select (or full)',
        # A copy: the adapter's buffers are donated by training steps, the base's never.
        lambda leaf, site: leaf + 0,
        lambda entry, leaf, path: entry,
        lambda model: model.sites.match_leaves(targets),
        lambda entry, leaf, path: entry.shape == leaf.shape,
        replaces=True,
    )


@described
def full() -> PeftTransform:
    r"""Full fine-tuning, the baseline: `select(r'.*')`.

    Returns:
      A transform whose adapter holds a copy of every leaf of the base.

    >>> mlp = peftjax.testing.tiny_mlp()
    >>> peftjax.summary(peftjax.full(), mlp).percent_of_base
    100.0
    """
    return select(r'.*')
