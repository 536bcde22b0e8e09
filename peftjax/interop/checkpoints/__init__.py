"""Checkpoints and tokenizers in Hugging Face layout, in and out."""
