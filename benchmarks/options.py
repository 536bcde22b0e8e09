"""Flags that several benchmarks share; absl keeps one table of names for a whole process."""

from absl import flags

MODEL = flags.DEFINE_enum('model', 'both', ['both', 'llama', 'bert'], 'which model')
SIZE = flags.DEFINE_enum('size', 'real', ['real', 'tiny'], 'real shapes, or small ones')
PAIRS = flags.DEFINE_integer('pairs', 5, 'turns of each side, where times are taken', lower_bound=1)
WRITE = flags.DEFINE_bool('write', False, 'keep the output in benchmarks/README.md')


def families() -> tuple[str, ...]:
    """The families that --model asks for."""
    return ('llama', 'bert') if MODEL.value == 'both' else (MODEL.value,)
