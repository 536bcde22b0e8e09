"""One row of the table of methods that the contract is checked on."""

import dataclasses
from collections.abc import Callable

import peftjax
from peftjax.core.paths import Targets
from tests.contract_models import IDS

# One of each shape and use: keys and values are as queries.
MATRICES = r'layers.*/(attention/(query|out)|up|down)'
TOKENS = IDS.size


@dataclasses.dataclass(frozen=True)
class Row:
    """A method and what the contract is told of it; the fields are those of `testing.Case`."""

    # Of the targets, and of the model too where `of_model` is set.
    make: Callable[..., peftjax.PeftTransform]
    targets: Targets
    fewer_targets: Targets | None
    parameters: int
    identity: float | None = 0.0
    mergeable: bool = True
    dense: bool = False
    forward_flops: float | None = None
    # Of a method that has a row already: on two forms only, and left out of the pairs.
    variant: bool = False
    of_model: bool = False

    def maker(self, model: peftjax.Model) -> Callable[[Targets], peftjax.PeftTransform]:
        """`make` as a function of the targets alone."""
        return (lambda targets: self.make(targets, model)) if self.of_model else self.make
