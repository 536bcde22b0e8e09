"""The error of a checkpoint that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint file is corrupt, or does not hold the tensors that its config asks for."""
