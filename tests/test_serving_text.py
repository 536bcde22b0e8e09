"""Prompts, prefixes and text of several adapters in one batch: each row as alone."""
