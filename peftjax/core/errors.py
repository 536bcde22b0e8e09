"""Errors for an adapter, a transform and a model that do not fit together."""


class MergeError(ValueError):
    """A merge was asked of a method that has no merged weight."""


class AdapterError(ValueError):
    """An adapter that does not belong to the model or the transform it is used with."""
