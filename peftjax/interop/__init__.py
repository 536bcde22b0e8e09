"""Checkpoints, adapters and tokenizers, in and out of the files of other tools."""
