"""What equations of a traced program do, in names of our own, whatever the JAX version.

`peftjax.binding.jaxprs.read` makes these descriptions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax import lax


class Body(NamedTuple):
    """A program inside an equation: a jaxpr and the values of its constants."""

    jaxpr: Any
    consts: Sequence[Any]


class Transpose(NamedTuple):
    permutation: Sequence[int]


class Reshape(NamedTuple):
    dimensions: Sequence[int] | None  # an order of the axes before the reshape; None for their own


class Squeeze(NamedTuple):
    dimensions: Sequence[int]


class Broadcast(NamedTuple):
    dimensions: Sequence[int]  # for each operand axis, the axis of the result


class Cast(NamedTuple):
    dtype: Any


class Same(NamedTuple):
    """The operand itself: copied, named, constrained or rounded."""


class Name(NamedTuple):
    """`checkpoint_name`."""

    name: str


class Concatenate(NamedTuple):
    """The operands, concatenated."""


class Slice(NamedTuple):
    starts: Sequence[int]
    sizes: Sequence[int]
    strided: bool


class DynamicSlice(NamedTuple):
    sizes: Sequence[int]


class Dot(NamedTuple):
    """`dot_general`; each pair of axes is (of the left operand, of the right operand)."""

    contract: tuple[Sequence[int], Sequence[int]]
    batch: tuple[Sequence[int], Sequence[int]]
    precision: Any
    preferred_element_type: Any


class Gather(NamedTuple):
    numbers: lax.GatherDimensionNumbers
    sizes: Sequence[int]
    options: Mapping[str, Any]  # further arguments of `lax.gather`

    @property
    def fills(self) -> bool:
        """Whether an index out of bounds gives a fill value."""
        return self.options['mode'] == lax.GatherScatterMode.FILL_OR_DROP


class Convolution(NamedTuple):
    """`conv_general_dilated`; a spec lists (batch or output, features, spatial axes...)."""

    numbers: lax.ConvDimensionNumbers
    feature_groups: int
    batch_groups: int


class Call(NamedTuple):
    """`jit` and its like: the body on the operands."""

    body: Body


class Derivative(NamedTuple):
    """A call with a custom derivative (`custom_jvp`, `custom_vjp`)."""

    body: Body


class Remat(NamedTuple):
    body: Body
    prevent_cse: Any
    policy: Any
    differentiated: bool


class Cond(NamedTuple):
    """The first operand is the index of the body that runs on the other operands."""

    bodies: tuple[Body, ...]


class While(NamedTuple):
    cond: Body
    body: Body
    n_cond: int
    n_body: int

    def split(self, operands: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Constants of the condition, constants of the body, and the state."""
        last = self.n_cond + self.n_body
        return operands[: self.n_cond], operands[self.n_cond : last], operands[last:]


class Scan(NamedTuple):
    body: Body
    length: int
    reverse: bool
    unroll: int
    n_consts: int
    n_carry: int

    def split(self, operands: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Constants, the first carry, and the arrays to be sliced."""
        last = self.n_consts + self.n_carry
        return operands[: self.n_consts], operands[self.n_consts : last], operands[last:]

    def again(self, step: Callable[..., Any], carry: Any, slices: Any) -> Any:
        """`lax.scan` of another step, with the same length, direction and unrolling."""
        return lax.scan(
            step, carry, slices, length=self.length, reverse=self.reverse, unroll=self.unroll
        )


Control = Call | Derivative | Remat | Cond | While | Scan
Operation = (
    Transpose | Reshape | Squeeze | Broadcast | Cast | Same | Name | Concatenate | Slice
    | DynamicSlice | Dot | Gather | Convolution | Control
)  # fmt: skip
