"""GGUF files: checkpoints in, adapters out."""
