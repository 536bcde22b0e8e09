"""Flags that several benchmarks share, defined once because absl has one table for a process."""

from absl import flags

MODEL = flags.DEFINE_enum('model', 'both', ['both', 'llama', 'bert'], 'which model')
SIZE = flags.DEFINE_enum('size', 'real', ['real', 'tiny'], 'real shapes, or small ones')
PAIRS = flags.DEFINE_integer('pairs', 5, 'timed turns of each side', lower_bound=1)
WRITE = flags.DEFINE_bool('write', False, 'write the output into benchmarks/README.md')


def families() -> tuple[str, ...]:
    """The families that --model selects."""
    return ('llama', 'bert') if MODEL.value == 'both' else (MODEL.value,)
