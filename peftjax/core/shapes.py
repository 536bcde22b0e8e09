"""The letters of array shapes: one meaning each, in every signature of the library.

Arrays carry their shape in the type, `Float[jax.Array, 'in out']`, and the tests check it at every
call. A letter that occurs twice in one signature, or in the entries of its `Leaves`, is one size.

    in, out         the two sides of a weight matrix, as `Layout` reads them from its leaf
    rank            the inner size of a factored change
    T               tokens, all axes of a batch flattened
    B, L            examples, and tokens of each
    blocks, block   how many blocks a side is cut into, and their size
    width, size     what a network beside a module reads, and how much narrower it is inside
    features        what a module returns for each token
    n               virtual tokens
    heads, H        heads of keys and values, and the width of one
    C, V            choices of an answer; tokens of a vocabulary
    rows, columns   a matrix as a quantiser sees it: outputs and inputs, as in PyTorch
    *stack          axes that number independent matrices: layers, experts

A name with a space in front is one axis: without it, linters would look for a variable.
"""

import jax
import numpy as np

HostArray = jax.Array | np.ndarray
"""What NumPy may have drawn on the host: constants that do not train."""
