"""Chosen entries, leaves or rows of the weights train."""
