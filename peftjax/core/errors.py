"""What goes wrong between an adapter, a transform and a model."""


class MergeError(ValueError):
    """A method that has no merged weight was asked for one."""


class AdapterError(ValueError):
    """An adapter that does not belong to the model or the transform it is used with."""
