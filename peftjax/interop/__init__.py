"""Checkpoints and tokenizers, from the files other tools write."""
