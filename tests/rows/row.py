"""One row of the table of methods that the contract is checked on."""

import dataclasses

from tests.contract_models import IDS

# One of each shape and use: keys and values are as queries.
MATRICES = r'layers.*/(attention/(query|out)|up|down)'
TOKENS = IDS.size


@dataclasses.dataclass(frozen=True)
class Row:
    """A method and what the contract is told of it; the fields are those of `testing.Case`."""

    make: object  # of the targets, and of the model too where `of_model` is set
    targets: object
    fewer_targets: object
    parameters: int
    identity: float | None = 0.0
    mergeable: bool = True
    dense: bool = False
    forward_flops: float | None = None
    # Of a method that has a row already: on two forms only, and left out of the pairs.
    variant: bool = False
    of_model: bool = False
