"""The letters of array shapes: one meaning each, in every signature of the library.

Arrays carry their shape in the type, `Float[jax.Array, 'in out']`, and the tests check it at every
call. A name that occurs twice in a signature, the entries of its `Leaves` included, is one size.

    in, out         the two sides of a weight matrix, as `Layout` reads them from its leaf
    rank            the inner size of a factored change
    blocks, block   how many blocks a side is cut into, and their size
    entries         numbers that train at chosen places
    *stack          axes that number independent matrices: layers, experts
    *shape          axes of any leaf
    T               tokens, the axes of a batch flattened; `*T` before that
    B, L            examples, and tokens of each
    width           features that a network beside a module reads
    features        what a module returns for each token
    n               virtual tokens
    heads, H        heads of keys and values, and the width of one
    C, V            choices of an answer; tokens of a vocabulary
    rows, columns   a matrix as a quantiser sees it: outputs and inputs, as in PyTorch
    bytes           of a row or a block of codes

Any other name is of one file. `'{size}'` is the argument `size` of the function, `'_'` one axis of
any size, `'...'` any number of them. A single name has a space in front, without which linters take
it for a variable.
"""

import jax
import numpy as np

HostArray = jax.Array | np.ndarray
"""Arrays that NumPy may have drawn on the host: constants that do not train."""
