"""Edits of hidden states at chosen positions."""
