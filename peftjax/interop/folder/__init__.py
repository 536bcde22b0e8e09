"""Folders of `peftjax.save`: any adapter of any model, and the method that it belongs to."""
